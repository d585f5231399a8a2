// A batch row's whole training step in one block: embedding, LSTM, dense layer, softmax cross entropy, and back. Activations stay
// in shared memory, weights and the sums of their gradients in registers. The equations stand in embedding.cu, lstm_cell.cu,
// dense.cu and cross_entropy.cu; every sum has the order of the kernels there, so that the bits are the same.
//
//   fused_step      forward and backward of row blockIdx of the step at the cursor, by two halves of a block. One walks through time,
//                   a thread a unit's gate (lstm_sequence.cuh); the other helps, time steps ahead of it or behind. A barrier of
//                   all a time step.
//                   1. x[s] = table[ids[s]]. The helpers: given[s] = b + x[s]·W (a chain in the order of k); the walkers add h[s]·U
//                      (four chains, as in lstm_sequence.cu), and keep what the backward pass needs that is no gradient
//                      (gate_slope, state_slope, f) in the place of given[s].
//                   2. logits = b + h[T]·W, softmax and loss: of two classes each warp for itself, of more the helpers, a warp a
//                      class, then one. dh[T] = dlogits·Wᵀ.
//                   3. Back through time: the walkers' dpre[s] takes the place of the slopes; the helpers add dW, dU, db in
//                      registers, four columns a thread.
//                   4. dx[s] = dpre[s]·Wᵀ, 16 inputs at a time with their columns of W in shared memory: a thread two of them, of
//                      two time steps.
//                   It writes dx (in the order of the sorted tokens, tokens.cu), loss, hits, dlogits, h[T] and the row's gradients,
//                   partials[row] = [dW (E·4H) | dU (H·4H) | db (4H)]: adam_step (adam.cu) takes these.
//   fused_forward   1 and 2 alone, of the rows blockIdx, blockIdx + gridDim, …: probs, or loss and hits, or all.
//   _hHP_eEP        H is padded to HP (32 or 64), E to EP (16, 32 or 64); what is padded holds zeros.
// Shapes: tokens [steps,capacity] (tokens.cu), x [rows,T], labels [rows], table [V,E], w [E,4H], u [H,4H], b [4H], dense_w [H,C],
// dense_b [C], dx [rows·T,E], loss hits [rows], probs dlogits [rows,C], h_last [rows,H], class_weights [C] or null (all 1). Ids are below
// V, labels below C: the host has checked.
// Launch: fused_step a block of 8·HP threads a row of the largest batch (those beyond the step's rows leave), fused_forward any grid of
// blocks of 4·HP; dynamic shared as Fused::new (src/backend/cuda/fused.rs) says.
#include "fused.cuh"

FUSED(32, 16, , float, NO_PARAMETERS, NO_ARGUMENTS)
FUSED(32, 32, , float, NO_PARAMETERS, NO_ARGUMENTS)
FUSED(32, 64, , float, NO_PARAMETERS, NO_ARGUMENTS)
FUSED(64, 16, , float, NO_PARAMETERS, NO_ARGUMENTS)
FUSED(64, 32, , float, NO_PARAMETERS, NO_ARGUMENTS)
