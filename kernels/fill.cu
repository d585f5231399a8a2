// Assigns one value.
//   out[i] = value, i < n
// Launch: a thread an element, blocks of FILL_THREADS.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(FILL_THREADS) fill(float* out, u32 n, float value) {
    const u32 i = blockIdx.x * FILL_THREADS + threadIdx.x;
    if (i >= n) return;
    out[i] = value;
}
