// The kernels of fused.cu with table, W, U and dense W stored in 16 bits, and x, h, gates and dpre rounded to them: _bf16. The sums,
// c, biases, the loss and everything that is written are f32 (src/backend/precision.rs).
#include "fused.cuh"

FUSED(32, 16, _bf16, bf16)
FUSED(32, 32, _bf16, bf16)
FUSED(32, 64, _bf16, bf16)
FUSED(64, 16, _bf16, bf16)
FUSED(64, 32, _bf16, bf16)
