// Assigns one value.
//   out[i] = value, i < n
// Launch: a thread FOURS groups of four elements (half.cuh), blocks of FILL_THREADS.
#include "half.cuh"

extern "C" __global__ void __launch_bounds__(FILL_THREADS) fill(float* out, u32 n, float value) {
    const bool aligned = is_aligned(out);
#pragma unroll
    for (u32 j = 0; j < FOURS; ++j) {
        const u64 i = four_at(j, FILL_THREADS);
        store4(out, i, n, aligned && i + 4 <= n, make_float4(value, value, value, value));
    }
}
