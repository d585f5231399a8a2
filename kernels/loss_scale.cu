// What becomes of a step in f16, between its gradients and Adam: torch.amp.GradScaler's rule with a limit (src/backend/precision.rs).
//   all flags set:  done, alpha for the updates done so far and this one; GROWTH_STEPS in a row double the scale, up to MOST
//   else:           skipped; the scale is halved
// finite: `flags` of them, or with by_rows so many for each row of the step (fused_step's, one a warp). alpha as AdamConfig::alpha
// computes it on the host, by the same operations in f64. One warp.
//
//   all_finite   finite[block] = whether the block's share of the three arrays is; NORM_BLOCKS blocks
#include "loss_scale.cuh"

extern "C" __global__ void __launch_bounds__(WARP)
loss_scale(const Step* steps, const u32* cursor, const u32* finite, Scaling* scaling, u32 flags, u32 by_rows, double beta1,
           double beta2) {
    const Step step = steps[cursor[CURSOR_STEP]];
    const u64 count = by_rows ? (u64)step.rows * flags : flags;
    const bool every = all_set(finite, count);
    if (threadIdx.x != 0) return;
    const Scaling now = next_scaling(*scaling, every, step, beta1, beta2);
    *scaling = now;
}

__device__ __forceinline__ bool share_is_finite(const float* x, u64 n) {
    bool finite = true;
    for (u64 i = (u64)blockIdx.x * ELEMENT_THREADS + threadIdx.x; i < n; i += (u64)NORM_BLOCKS * ELEMENT_THREADS) {
        finite &= is_finite(x[i]);
    }
    return finite;
}

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
all_finite(const float* a, u64 a_size, const float* b, u64 b_size, const float* c, u64 c_size, u32* finite) {
    __shared__ u32 warp_finite[ELEMENT_THREADS / WARP];
    const bool own = share_is_finite(a, a_size) & share_is_finite(b, b_size) & share_is_finite(c, c_size);
    const bool all = __all_sync(ALL_LANES, own);
    if (threadIdx.x % WARP == 0) warp_finite[threadIdx.x / WARP] = all;
    __syncthreads();
    if (threadIdx.x != 0) return;
    bool every = true;
    for (u32 warp = 0; warp < ELEMENT_THREADS / WARP; ++warp) every &= warp_finite[warp] != 0;
    finite[blockIdx.x] = every;
}
