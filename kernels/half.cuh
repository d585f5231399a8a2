// Numbers stored in 16 bits, and as f32: the storage type T of a kernel is float, bf16 or f16.
//   widen       exact
//   narrow<T>   to nearest, ties to even; a NaN becomes NVIDIA's own, 0x7fff
// bf16 by integer operations, for which compute_75 has no instruction; f16 by its own (no cuda_fp16.h where NVRTC stands alone).
#pragma once
#include "common.cuh"

struct bf16 {
    unsigned short bits;
};
struct f16 {
    unsigned short bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

template <typename T>
__device__ __forceinline__ T narrow(float x);

template <>
__device__ __forceinline__ float narrow<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float x) {
    const u32 bits = __float_as_uint(x);
    // Half a unit less a bit, and the bit if what is kept is odd; a carry goes into the exponent, from the largest to infinity.
    const u32 nearest = bits + 0x7fffu + (bits >> 16 & 1u) >> 16;
    return {(unsigned short)(x != x ? 0x7fffu : nearest)};
}
template <>
__device__ __forceinline__ f16 narrow<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Whether a training that stores T scales its loss.
template <typename T>
constexpr bool SCALES = false;
template <>
constexpr bool SCALES<f16> = true;

// backend::cuda::half::Scaling: LossScale of src/backend/precision.rs, and what loss_scale (loss_scale.cu) makes of it for the last
// kernel of a step.
struct __align__(16) Scaling {
    float scale;
    u32 good_steps;
    u64 skipped;
    float alpha;    // Adam's, for the updates done
    float inverse;  // of the scale that the step's gradients were multiplied by
    u32 done;       // 0: the step is skipped
    u32 reserved;
};
static_assert(sizeof(Scaling) == 32, "as backend::cuda::half::Scaling");

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) < __uint_as_float(0x7f800000u); }

// What storing x in T leaves of it.
template <typename T>
__device__ __forceinline__ float as_stored(float x) {
    return widen(narrow<T>(x));
}

// load4 of common.cuh of 16 bits each, where `aligned` at a multiple of 8 bytes.
template <typename T>
__device__ __forceinline__ float4 load4(const T* from, u64 at, u64 n, bool aligned) {
    if (aligned) {
        if (at >= n) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const uint2 pairs = *(const uint2*)(from + at);
        return make_float4(widen(T{(unsigned short)pairs.x}), widen(T{(unsigned short)(pairs.x >> 16)}),
                           widen(T{(unsigned short)pairs.y}), widen(T{(unsigned short)(pairs.y >> 16)}));
    }
    return make_float4(at < n ? widen(from[at]) : 0.0f, at + 1 < n ? widen(from[at + 1]) : 0.0f,
                       at + 2 < n ? widen(from[at + 2]) : 0.0f, at + 3 < n ? widen(from[at + 3]) : 0.0f);
}

// load2 likewise, at a multiple of 4 bytes.
template <typename T>
__device__ __forceinline__ float2 load2(const T* from, u64 at, u64 n, bool aligned) {
    if (aligned) {
        if (at >= n) return make_float2(0.0f, 0.0f);
        const u32 pair = *(const u32*)(from + at);
        return make_float2(widen(T{(unsigned short)pair}), widen(T{(unsigned short)(pair >> 16)}));
    }
    return make_float2(at < n ? widen(from[at]) : 0.0f, at + 1 < n ? widen(from[at + 1]) : 0.0f);
}

// store4 of common.cuh, rounded to 16 bits each, where `aligned` at a multiple of 8 bytes.
template <typename T>
__device__ __forceinline__ void store4(T* to, u64 at, u64 n, bool aligned, float4 value) {
    const T x = narrow<T>(value.x), y = narrow<T>(value.y), z = narrow<T>(value.z), w = narrow<T>(value.w);
    if (aligned) {
        if (at < n) *(uint2*)(to + at) = make_uint2((u32)y.bits << 16 | x.bits, (u32)w.bits << 16 | z.bits);
        return;
    }
    if (at < n) to[at] = x;
    if (at + 1 < n) to[at + 1] = y;
    if (at + 2 < n) to[at + 2] = z;
    if (at + 3 < n) to[at + 3] = w;
}

// ---------------------------------------------------------------- arrays, element by element

// A thread of such a kernel takes FOURS groups of four elements, as far apart as the block's threads need: so many bytes are asked for
// before the first are there.
constexpr u32 FOURS = ELEMENT_FOURS;

// Where the thread's group j begins.
__device__ __forceinline__ u64 four_at(u32 j, u32 threads) {
    return (((u64)blockIdx.x * FOURS + j) * threads + threadIdx.x) * 4;
}

// Whether loads and stores of four elements may begin here.
template <typename T>
__device__ __forceinline__ bool is_aligned(const T* at) {
    return ((u64)at & (4 * sizeof(T) - 1)) == 0;
}
