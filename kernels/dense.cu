// Dense layer.
//   forward             y = x·W + b                         a warp an output: lanes stride over the inputs, then a fixed tree
//   backward_input      dx = dy·Wᵀ                          a thread an element
//   backward_weights    dW (+)= xᵀ·dy,  db (+)= sum of dy   a warp an element: lanes stride over the batch, then a fixed tree
// Shapes: x dx [B,inputs], W dW [inputs,outputs], b db [outputs], y dy [B,outputs].
// Launch: DENSE_WARPS warps a block; backward_input blocks of ELEMENT_THREADS.
#include "common.cuh"

__device__ __forceinline__ u64 global_warp() { return (u64)blockIdx.x * DENSE_WARPS + threadIdx.x / WARP; }

extern "C" __global__ void __launch_bounds__(DENSE_WARPS * WARP)
dense_forward(const float* x, const float* w, const float* b, float* y, u32 batch, u32 inputs, u32 outputs) {
    const u64 i = global_warp();
    if (i >= (u64)batch * outputs) return;
    const u32 lane = threadIdx.x % WARP;
    const u64 row = i / outputs;
    const u64 col = i - row * outputs;
    float sum = 0.0f;
    for (u32 k = lane; k < inputs; k += WARP) sum = fmaf(x[row * inputs + k], w[(u64)k * outputs + col], sum);
    sum = warp_sum(sum);
    if (lane == 0) y[i] = b[col] + sum;
}

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
dense_backward_input(const float* dy, const float* w, float* dx, u32 batch, u32 inputs, u32 outputs) {
    const u64 i = (u64)blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (i >= (u64)batch * inputs) return;
    const u64 row = i / inputs;
    const u64 k = i - row * inputs;
    float sum = 0.0f;
    for (u32 col = 0; col < outputs; ++col) sum = fmaf(dy[row * outputs + col], w[k * outputs + col], sum);
    dx[i] = sum;
}

extern "C" __global__ void __launch_bounds__(DENSE_WARPS * WARP)
dense_backward_weights(const float* x, const float* dy, float* dw, float* db, u32 batch, u32 inputs, u32 outputs,
                       u32 accumulate) {
    const u64 i = global_warp();
    if (i >= ((u64)inputs + 1) * outputs) return;
    const u32 lane = threadIdx.x % WARP;
    const u64 k = i / outputs;
    const u64 col = i - k * outputs;
    const bool is_bias = k == inputs;
    float sum = 0.0f;
    for (u64 row = lane; row < batch; row += WARP) {
        const float factor = is_bias ? 1.0f : x[row * inputs + k];
        sum = fmaf(factor, dy[row * outputs + col], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        float* at = is_bias ? db + col : dw + i;
        *at = accumulate ? *at + sum : sum;
    }
}
