// The rule of loss_scale.cu, whose head states it.
#pragma once
#include "half.cuh"

// base^exponent by squaring, least significant bit first.
__device__ __forceinline__ double power(double base, u64 exponent) {
    double product = 1.0;
    for (; exponent > 0; exponent >>= 1) {
        if (exponent & 1) product *= base;
        base *= base;
    }
    return product;
}

// Whether all of them are set, in every lane of a warp.
__device__ __forceinline__ bool all_set(const u32* flags, u64 count) {
    bool every = true;
    for (u64 i = threadIdx.x % WARP; i < count; i += WARP) every &= flags[i] != 0;
    return __all_sync(ALL_LANES, every);
}

// What becomes of the step whose gradients are all finite, or not.
__device__ __forceinline__ Scaling next_scaling(Scaling now, bool every, const Step& step, double beta1, double beta2) {
    now.done = every;
    now.inverse = (float)(1.0 / (double)now.scale);
    if (every) {
        const u64 updates = ((u64)step.t_high << 32 | step.t_low) - now.skipped;
        now.alpha = (float)((double)step.lr * sqrt(1.0 - power(beta2, updates)) / (1.0 - power(beta1, updates)));
        now.good_steps += 1;
        if (now.good_steps == LOSS_SCALE_GROWTH_STEPS) {
            const float larger = now.scale * 2.0f;
            if (larger <= (float)LOSS_SCALE_MOST) now.scale = larger;
            now.good_steps = 0;
        }
    } else {
        now.scale *= 0.5f;
        now.good_steps = 0;
        now.skipped += 1;
    }
    return now;
}
