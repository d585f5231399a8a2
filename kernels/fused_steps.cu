// Many training steps in one launch: fused_step (fused.cu) and adam_step (adam.cu) by blocks that stay on the device together and wait
// for each other, by the same functions: every sum has the same order, and the results have the same bits.
//
//   fused_steps   steps first, first + 1, …, `count` of them. Blocks by their number:
//                   rows       one row of each batch, as a block of fused_step
//                   dense      metrics, W [H,C], b [C]: a warp an element
//                   layer      W, U, b of the LSTM: a thread an element
//                   table      a bucket of the table's rows (tokens.cu), four columns a thread. Rows without tokens in the step are
//                              updated while the blocks of rows compute: these read no other rows than those of the step's tokens.
//                 Two counters order memory between blocks: the blocks of rows are through with a step (`gradients`), and the others with
//                 its updates (`parameters`). Who waits reads the counter with acquire, who arrives adds 1 with release.
// Shapes: as fused_step's and adam_step's. signals [2·SIGNAL_PITCH], 0 before the launch.
// Launch: cooperative; a block of 8·HP threads for each row of the largest batch, dense_blocks, layer_blocks and as many as there are
// buckets, none of these 0; dynamic shared as FusedSteps (src/backend/cuda/fused_steps.rs) says.
#include "fused_steps.cuh"

#define NOTHING
FUSED_STEPS(32, 16, , float, NOTHING, params, nullptr, nullptr, 0.0, 0.0)
FUSED_STEPS(32, 32, , float, NOTHING, params, nullptr, nullptr, 0.0, 0.0)
FUSED_STEPS(32, 64, , float, NOTHING, params, nullptr, nullptr, 0.0, 0.0)
FUSED_STEPS(64, 16, , float, NOTHING, params, nullptr, nullptr, 0.0, 0.0)
FUSED_STEPS(64, 32, , float, NOTHING, params, nullptr, nullptr, 0.0, 0.0)
