// Adam in Keras' form over the whole arena (Kingma & Ba 2015), the sums that feed it, and clipping by the global norm.
//   g = gradient·scale                          scale: clipping; 1 without
//   p −= lr·weight_decay·p                      decoupled
//   m += (1−beta1)·(g−m);  v += (1−beta2)·(g²−v);  p −= alpha·m/(sqrt(v)+eps)
//   alpha = lr·sqrt(1−beta2^t)/(1−beta1^t)      in f64, powers by squaring, as backend::AdamConfig::alpha
// t, lr, decay and clipping are read from the table of steps at *cursor: a captured launch takes the next step each time.
//   adam               a thread an element; in [partial_begin, partial_end) the gradient is the sum of `count` partials in their
//                      order, elsewhere it is grads[i]. An element whose gradient and moments are all 0 is left alone: its update
//                      would be p − alpha·0/(0+eps).
//   reduce_partials    out[i] (+)= sum over p of partials[p·stride + i]
//   gradient_norm      sums[block] = the block's share of the sum of g², in f64 and a fixed order; NORM_BLOCKS blocks
//   clip_scale         scale = clip/norm where norm > clip > 0, else 1; a NaN gradient makes it NaN; one warp
#include "common.cuh"

// base^exponent, least significant bit first: the same products as on the host.
__device__ __forceinline__ double power(double base, u64 exponent) {
    double product = 1.0;
    while (exponent > 0) {
        if (exponent & 1) product *= base;
        base *= base;
        exponent >>= 1;
    }
    return product;
}

__device__ __forceinline__ float sum_partials(const float* partials, u32 count, u64 stride) {
    float sum = 0.0f;
#pragma unroll 8
    for (u32 p = 0; p < count; ++p) sum += partials[p * stride];
    return sum;
}

extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
adam(const StepState* steps, const u32* cursor, const double* scale, float* params, float* m, float* v, const float* grads,
     const float* partials, u32 partial_begin, u32 partial_end, u32 count, u64 stride, double beta1, double beta2, double eps,
     u32 n) {
    __shared__ float shared_alpha;
    __shared__ float shared_decay;
    if (threadIdx.x == 0) {
        const StepState step = steps[*cursor];
        const double lr = (double)step.lr;
        shared_alpha = (float)(lr * sqrt(1.0 - power(beta2, step.t)) / (1.0 - power(beta1, step.t)));
        shared_decay = (float)(lr * (double)step.weight_decay);
    }
    __syncthreads();
    const u32 i = blockIdx.x * ADAM_THREADS + threadIdx.x;
    if (i >= n) return;
    const float alpha = shared_alpha;
    const float decay = shared_decay;
    const float factor = scale ? (float)*scale : 1.0f;
    const bool partial = i >= partial_begin && i < partial_end;
    float g = partial ? sum_partials(partials + (i - partial_begin), count, stride) : grads[i];
    float mean = m[i];
    float square = v[i];
    const float infinity = __uint_as_float(0x7f800000u);
    const bool plain = decay == 0.0f && alpha >= 0.0f && alpha < infinity && eps > 0.0 && fabsf(factor) < infinity;
    if (plain && g == 0.0f && mean == 0.0f && square == 0.0f) return;
    g *= factor;
    float p = params[i];
    if (decay != 0.0f) p = fmaf(-decay, p, p);
    mean = fmaf((float)(1.0 - beta1), g - mean, mean);
    square = fmaf((float)(1.0 - beta2), fmaf(g, g, -square), square);
    m[i] = mean;
    v[i] = square;
    params[i] = p - alpha * mean / (sqrtf(square) + (float)eps);
}

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
reduce_partials(const float* partials, float* out, u32 n, u32 count, u64 stride, u32 accumulate) {
    const u32 i = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (i >= n) return;
    const float sum = sum_partials(partials + i, count, stride);
    out[i] = accumulate ? out[i] + sum : sum;
}

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) gradient_norm(const float* grads, double* sums, u32 n) {
    constexpr u32 WARPS = ELEMENT_THREADS / WARP;
    __shared__ double warp_sums[WARPS];
    double sum = 0.0;
    for (u64 i = (u64)blockIdx.x * ELEMENT_THREADS + threadIdx.x; i < n; i += (u64)NORM_BLOCKS * ELEMENT_THREADS) {
        const double g = (double)grads[i];
        sum = fma(g, g, sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) warp_sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double all = 0.0;
        for (u32 warp = 0; warp < WARPS; ++warp) all += warp_sums[warp];
        sums[blockIdx.x] = all;
    }
}

extern "C" __global__ void __launch_bounds__(WARP)
clip_scale(const double* sums, const StepState* steps, const u32* cursor, double* scale) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < NORM_BLOCKS; i += WARP) sum += sums[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) {
        const double clip = (double)steps[*cursor].clip_norm;
        const double norm = sqrt(sum);
        *scale = clip <= 0.0 || norm <= clip ? 1.0 : clip / norm;
    }
}
