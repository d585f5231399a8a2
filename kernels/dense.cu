// Dense layer.
//   forward             y = x·W + b                         a warp an output: lanes stride over the inputs, then a fixed tree
//   backward_input      dx = dy·Wᵀ                          a thread an element
//   backward_weights    dW (+)= xᵀ·dy,  db (+)= sum of dy   a warp an element: lanes stride over the batch, then a fixed tree
// Shapes: x dx [B,inputs], W dW [inputs,outputs], b db [outputs], y dy [B,outputs].
//   _bf16 _f16          x and W are stored in 16 bits
// Launch: DENSE_WARPS warps a block; backward_input blocks of ELEMENT_THREADS.
#include "half.cuh"

__device__ __forceinline__ u64 global_warp() { return (u64)blockIdx.x * DENSE_WARPS + threadIdx.x / WARP; }

template <typename T>
__device__ __forceinline__ void forward(const T* x, const T* w, const float* b, float* y, u32 batch, u32 inputs, u32 outputs) {
    const u64 i = global_warp();
    if (i >= (u64)batch * outputs) return;
    const u32 lane = threadIdx.x % WARP;
    const u64 row = i / outputs;
    const u64 col = i - row * outputs;
    float sum = 0.0f;
    for (u32 k = lane; k < inputs; k += WARP) sum = fmaf(widen(x[row * inputs + k]), widen(w[(u64)k * outputs + col]), sum);
    sum = warp_sum(sum);
    if (lane == 0) y[i] = b[col] + sum;
}

template <typename T>
__device__ __forceinline__ void backward_input(const float* dy, const T* w, float* dx, u32 batch, u32 inputs, u32 outputs) {
    const u64 i = (u64)blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (i >= (u64)batch * inputs) return;
    const u64 row = i / inputs;
    const u64 k = i - row * inputs;
    float sum = 0.0f;
    for (u32 col = 0; col < outputs; ++col) sum = fmaf(dy[row * outputs + col], widen(w[k * outputs + col]), sum);
    dx[i] = sum;
}

template <typename T>
__device__ __forceinline__ void backward_weights(const T* x, const float* dy, float* dw, float* db, u32 batch, u32 inputs, u32 outputs,
                                                 u32 accumulate) {
    const u64 i = global_warp();
    if (i >= ((u64)inputs + 1) * outputs) return;
    const u32 lane = threadIdx.x % WARP;
    const u64 k = i / outputs;
    const u64 col = i - k * outputs;
    const bool is_bias = k == inputs;
    float sum = 0.0f;
    for (u64 row = lane; row < batch; row += WARP) {
        const float factor = is_bias ? 1.0f : widen(x[row * inputs + k]);
        sum = fmaf(factor, dy[row * outputs + col], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        float* at = is_bias ? db + col : dw + i;
        *at = accumulate ? *at + sum : sum;
    }
}

#define DENSE(suffix, T)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(DENSE_WARPS * WARP)                                                            \
    dense_forward##suffix(const T* x, const T* w, const float* b, float* y, u32 batch, u32 inputs, u32 outputs) {               \
        forward(x, w, b, y, batch, inputs, outputs);                                                                            \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)                                                               \
    dense_backward_input##suffix(const float* dy, const T* w, float* dx, u32 batch, u32 inputs, u32 outputs) {                  \
        backward_input(dy, w, dx, batch, inputs, outputs);                                                                      \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(DENSE_WARPS * WARP)                                                            \
    dense_backward_weights##suffix(const T* x, const float* dy, float* dw, float* db, u32 batch, u32 inputs, u32 outputs,       \
                                   u32 accumulate) {                                                                            \
        backward_weights(x, dy, dw, db, batch, inputs, outputs, accumulate);                                                    \
    }
DENSE(, float)
DENSE(_bf16, bf16)
DENSE(_f16, f16)
