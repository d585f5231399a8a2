// The kernels of fused.cu with table, W, U, dense W and h_last stored in 16 bits, and x, h, gates and dpre rounded to them: _bf16,
// _f16. The sums, c, biases, the loss and everything else that is written are f32 (src/backend/precision.rs). With _f16 dlogits are
// multiplied by the scale of the loss, and so is all that follows from them.
#include "fused.cuh"

FUSED(32, 16, _bf16, bf16, NO_PARAMETERS, NO_ARGUMENTS)
FUSED(32, 32, _bf16, bf16, NO_PARAMETERS, NO_ARGUMENTS)
FUSED(32, 64, _bf16, bf16, NO_PARAMETERS, NO_ARGUMENTS)
FUSED(64, 16, _bf16, bf16, NO_PARAMETERS, NO_ARGUMENTS)
FUSED(64, 32, _bf16, bf16, NO_PARAMETERS, NO_ARGUMENTS)
FUSED(32, 16, _f16, f16, SCALING_PARAMETERS, SCALING_ARGUMENTS)
FUSED(32, 32, _f16, f16, SCALING_PARAMETERS, SCALING_ARGUMENTS)
FUSED(32, 64, _f16, f16, SCALING_PARAMETERS, SCALING_ARGUMENTS)
FUSED(64, 16, _f16, f16, SCALING_PARAMETERS, SCALING_ARGUMENTS)
FUSED(64, 32, _f16, f16, SCALING_PARAMETERS, SCALING_ARGUMENTS)
