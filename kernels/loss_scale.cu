// What becomes of a step in f16, between its gradients and Adam: torch.amp.GradScaler's rule (src/backend/precision.rs).
//   all warps of all rows finite:  done, alpha for the updates done so far and this one; GROWTH_STEPS in a row double the scale
//   else:                          skipped; the scale is halved
// finite [rows,warps] as fused_step left it, of the step that it set the cursor's last to. alpha as AdamConfig::alpha computes it on the
// host, by the same operations in f64. One warp.
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

extern "C" __global__ void __launch_bounds__(WARP)
loss_scale(const Step* steps, const u32* cursor, const u32* finite, Scaling* scaling, u32 warps, double beta1, double beta2) {
    const Step step = steps[cursor[CURSOR_LAST]];
    bool all_finite = true;
    for (u64 i = threadIdx.x; i < (u64)step.rows * warps; i += WARP) all_finite &= finite[i] != 0;
    all_finite = __all_sync(ALL_LANES, all_finite);
    if (threadIdx.x != 0) return;
    Scaling now = *scaling;
    now.done = all_finite;
    now.inverse = (float)(1.0 / (double)now.scale);
    if (all_finite) {
        const u64 updates = ((u64)step.t_high << 32 | step.t_low) - now.skipped;
        now.alpha = (float)((double)step.lr * sqrt(1.0 - power(beta2, updates)) / (1.0 - power(beta1, updates)));
        now.good_steps += 1;
        if (now.good_steps == LOSS_SCALE_GROWTH_STEPS) {
            const float larger = now.scale * 2.0f;
            if (is_finite(larger)) now.scale = larger;
            now.good_steps = 0;
        }
    } else {
        now.scale *= 0.5f;
        now.good_steps = 0;
        now.skipped += 1;
    }
    *scaling = now;
}
