// The strict activations by themselves, so that their error can be measured over all of f32 on the device that runs them.
//   out[i] = exp | sigmoid | tanh | log (x[i]), which = 0 | 1 | 2 | 3, i < n
// Launch: a thread FOURS groups of four elements (half.cuh), blocks of ELEMENT_THREADS.
#include "half.cuh"

template <typename F>
__device__ __forceinline__ void for_each(const float* x, float* out, u32 n, F f) {
    const bool aligned = is_aligned(x) && is_aligned(out);
    float4 value[FOURS];
#pragma unroll
    for (u32 j = 0; j < FOURS; ++j) {
        const u64 i = four_at(j, ELEMENT_THREADS);
        value[j] = load4(x, i, n, aligned && i + 4 <= n);
    }
#pragma unroll
    for (u32 j = 0; j < FOURS; ++j) {
        const u64 i = four_at(j, ELEMENT_THREADS);
        const float4 y = make_float4(f(value[j].x), f(value[j].y), f(value[j].z), f(value[j].w));
        store4(out, i, n, aligned && i + 4 <= n, y);
    }
}

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) activate(const float* x, float* out, u32 n, u32 which) {
    switch (which) {
        case 0: for_each(x, out, n, strict_exp); break;
        case 1: for_each(x, out, n, strict_sigmoid); break;
        case 2: for_each(x, out, n, strict_tanh); break;
        default: for_each(x, out, n, strict_log); break;
    }
}
