// What adam.cu and the kernels that keep a model for many steps (fused_steps.cuh) share: an element's update, and the sums of gradients.
#pragma once
#include "half.cuh"

// What all elements share.
struct Update {
    float alpha, decay, one_minus_beta1, one_minus_beta2, eps;
    bool skips;  // an element of zeros stays as it is
};

__device__ __forceinline__ Update update_of(const Step& step, float one_minus_beta1, float one_minus_beta2, float eps, float factor) {
    const float infinity = __uint_as_float(0x7f800000u);
    const bool skips = step.decay == 0.0f && step.alpha >= 0.0f && step.alpha < infinity && eps > 0.0f && fabsf(factor) < infinity;
    return {step.alpha, step.decay, one_minus_beta1, one_minus_beta2, eps, skips};
}

__device__ __forceinline__ bool stays(const Update& k, float g, float mean, float square) {
    return k.skips && g == 0.0f && mean == 0.0f && square == 0.0f;
}

__device__ __forceinline__ void update(const Update& k, float g, float& p, float& mean, float& square) {
    if (stays(k, g, mean, square)) return;
    if (k.decay != 0.0f) p = fmaf(-k.decay, p, p);
    mean = fmaf(k.one_minus_beta1, g - mean, mean);
    square = fmaf(k.one_minus_beta2, fmaf(g, g, -square), square);
    p -= k.alpha * mean / (sqrtf(square) + k.eps);
}

// An element in memory, asked for before its gradient is known.
struct Element {
    float p, mean, square;

    __device__ __forceinline__ Element(const float* params, const float* m, const float* v, u64 i)
        : p(params[i]), mean(m[i]), square(v[i]) {}
};

// Writes the element anew, and its copy, if T is not float.
template <typename T>
__device__ __forceinline__ void update_at(const Update& k, float g, Element& x, float* params, float* m, float* v, T* stored, u64 i) {
    if (stays(k, g, x.mean, x.square)) return;
    update(k, g, x.p, x.mean, x.square);
    params[i] = x.p;
    m[i] = x.mean;
    v[i] = x.square;
    if constexpr (sizeof(T) < sizeof(float)) stored[i] = narrow<T>(x.p);
}

__device__ __forceinline__ bool stays(const Update& k, float4 g, float4 mean, float4 square) {
    return stays(k, g.x, mean.x, square.x) && stays(k, g.y, mean.y, square.y) && stays(k, g.z, mean.z, square.z) &&
           stays(k, g.w, mean.w, square.w);
}

// Elements [i, i + 4) of n, as they are in memory, and of their copies, if T is not float.
template <typename T>
__device__ __forceinline__ void update_four(const Update& k, float4 g, float4 p, float4 mean, float4 square, float* params, float* m,
                                            float* v, T* stored, u64 i, u64 n, bool aligned) {
    update(k, g.x, p.x, mean.x, square.x);
    update(k, g.y, p.y, mean.y, square.y);
    update(k, g.z, p.z, mean.z, square.z);
    update(k, g.w, p.w, mean.w, square.w);
    store4(params, i, n, aligned, p);
    store4(m, i, n, aligned, mean);
    store4(v, i, n, aligned, square);
    if constexpr (sizeof(T) < sizeof(float)) {
        stored[i] = narrow<T>(p.x);
        if (i + 1 < n) stored[i + 1] = narrow<T>(p.y);
        if (i + 2 < n) stored[i + 2] = narrow<T>(p.z);
        if (i + 3 < n) stored[i + 3] = narrow<T>(p.w);
    }
}

// AHEAD: how many are asked for at a time.
template <u32 AHEAD = 16>
__device__ __forceinline__ float sum_partials(const float* partials, u32 count, u64 stride) {
    float sum = 0.0f;
#pragma unroll AHEAD
    for (u32 p = 0; p < count; ++p) sum += partials[p * stride];
    return sum;
}

// The gradient of element i of dense W [H,C] or b [C], in every lane of a warp: lanes stride over the batch, then a fixed tree.
template <typename T>
__device__ __forceinline__ float sum_dense(const T* h_last, const float* dlogits, u32 i, u32 rows, u32 hidden, u32 classes) {
    const u32 unit = i / classes;
    const u32 col = i - unit * classes;
    const bool is_bias = unit == hidden;
    float sum = 0.0f;
    for (u64 row = threadIdx.x % WARP; row < rows; row += WARP) {
        const float factor = is_bias ? 1.0f : widen(h_last[row * hidden + unit]);
        sum = fmaf(factor, dlogits[row * classes + col], sum);
    }
    return warp_sum(sum);
}
