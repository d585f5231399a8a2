// What every kernel shares: the strict activations, warp reductions in a fixed order, the structs read from device memory.
//
// Header-free CUDA C++: nothing but what NVRTC itself knows. Everything is compiled with --fmad=false, so that a product and a
// sum are fused only where fmaf stands; with IEEE division and square root every result is defined bit for bit, on every
// architecture. No __CUDA_ARCH__ branches. Launch constants (FILL_THREADS, …) come from src/tuning.rs as -D.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

static_assert(sizeof(u64) == 8 && sizeof(size_t) == 8, "device pointers and sizes have 64 bits");

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

// The same number, of which the compiler knows nothing: what is made of it is made where it stands, not kept from before.
__device__ __forceinline__ u32 anew(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}

// x, from here on in registers, not computed anew where it is used.
__device__ __forceinline__ u64 held(u64 x) {
    asm volatile("" : "+l"(x));
    return x;
}
template <typename T>
__device__ __forceinline__ T* held(T* at) {
    return (T*)held((u64)at);
}

// One gate's block of H columns in the 4H axis: i, f, g, o, as in Keras and PyTorch.
constexpr u32 GATE_I = 0;
constexpr u32 GATE_F = 1;
constexpr u32 GATE_G = 2;
constexpr u32 GATE_O = 3;
constexpr u32 GATES = 4;

// backend::cuda::steps::Step: one row of the table of steps. What Adam needs of a step is computed by the host, in f64.
struct __align__(16) Step {
    float alpha;      // lr·sqrt(1−beta2^t)/(1−beta1^t)
    float decay;      // lr·weight_decay
    float clip_norm;  // 0: no clipping
    u32 batch_start;
    u32 rows;
    float lr;
    u32 t_low, t_high;  // of the 64 bits of t
};
static_assert(sizeof(Step) == 32, "as backend::cuda::steps::Step");

// The step at hand is steps[cursor[…]]. The kernels of a step read cursor[CURSOR_STEP], all but the last, which reads
// cursor[CURSOR_LAST]: so the first kernel may set the one and the last kernel the other while their neighbours in the grid read.
constexpr u32 CURSOR_STEP = 0;
constexpr u32 CURSOR_LAST = 1;

// metrics::Metrics on the device.
struct MetricSums {
    double loss_sum;
    u64 batches;
    u64 correct;
    u64 examples;
};
static_assert(sizeof(MetricSums) == 32, "as backend::cuda::MetricSums");

// ---------------------------------------------------------------- activations

constexpr float LOG2_E = 1.44269504f;

// x = m·unit, unit a power of two or its negative, is n·ln 2 + r with an integer n and |r| <= ln 2 / 2 (and a little): sets n, returns
// exp(r) − 1. log2_unit: LOG2_E·unit, exactly, so that n does not wait for x.
// For |x| <= 104. Minimax coefficients of Cephes' expf; ln 2 in two parts, of which the first makes n·LN2_HI exact.
__device__ __forceinline__ float reduced_expm1(float m, float unit, float log2_unit, int& n) {
    constexpr float ROUND = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer that stands in the low bits
    constexpr float LN2_HI = 355.0f / 512.0f;
    constexpr float LN2_LO = -2.12194440e-4f;
    const float x = m * unit;
    const float rounded = fmaf(m, log2_unit, ROUND);
    const float whole = rounded - ROUND;
    const float r = fmaf(-whole, LN2_LO, fmaf(-whole, LN2_HI, x));
    // By Estrin's scheme: three products deep where Horner's is six.
    const float r2 = r * r;
    const float high = fmaf(1.9875691e-4f, r, 1.3981999e-3f);
    const float middle = fmaf(8.3334519e-3f, r, 4.1665795e-2f);
    const float low = fmaf(1.6666665e-1f, r, 0.5f);
    n = (int)(__float_as_uint(rounded) - __float_as_uint(ROUND));
    return fmaf(fmaf(fmaf(high, r2, middle), r2, low), r2, r);
}

// 2^n for −126 <= n <= 127.
__device__ __forceinline__ float power_of_two(int n) { return __uint_as_float((u32)(n + 127) << 23); }

// e^x. A NaN stays one.
__device__ __forceinline__ float strict_exp(float x) {
    // Beyond these the result is 0 or infinite anyway. Written so that a NaN passes through.
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    int n;
    const float expm1 = reduced_expm1(x, 1.0f, LOG2_E, n);
    // Two factors: 2^n may be out of range where the product is subnormal or just below infinity.
    const int half = n >> 1;
    return (1.0f + expm1) * power_of_two(half) * power_of_two(n - half);
}

// numerator / denominator, rounded to nearest, without the branch for extreme operands that a division has: the approximate
// reciprocal, of which no bit reaches the result as long as it is within a unit in the last place (NVIDIA's bound), and the exact
// remainder. For the operands of squash alone: benches/EXPERIMENTS.md says how all of them were compared with a division.
__device__ __forceinline__ float quotient(float numerator, float denominator) {
    float near;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(near) : "f"(denominator));
    const float error = fmaf(-denominator, near, 1.0f);
    const float first = numerator * near;
    const float second = fmaf(error, first, first);
    const float remainder = fmaf(-denominator, second, numerator);
    return fmaf(remainder, fmaf(error, near, near), second);
}

// sigmoid or tanh, as numbers: lanes of a warp that need the one and the other do not part, and nothing waits for a predicate.
struct Squash {
    float limit;  // of |x|: the result does not change beyond
    float unit, log2_unit;
    float slope, offset;  // the last step's summand is slope·factor + offset
    u32 one;              // 1 or −1 in bits
    u32 tanh_bits;        // all, or none

    __device__ __forceinline__ explicit Squash(bool is_tanh)
        : limit(is_tanh ? 10.0f : 104.0f), unit(is_tanh ? 2.0f : -1.0f), log2_unit(is_tanh ? 2.0f * LOG2_E : -LOG2_E),
          slope(is_tanh ? 0.0f : -0.5f), offset(is_tanh ? -0.0f : 0.5f), one(is_tanh ? 0x3f800000u : 0xbf800000u),
          tanh_bits(is_tanh ? ~0u : 0u) {}
};

// A value before its last step; product() is x times the value of a tanh, a step earlier.
struct Squashed {
    float quotient, factor, summand;

    __device__ __forceinline__ float value() const { return fmaf(quotient, factor, summand); }
    __device__ __forceinline__ float product(float x) const { return x * factor * quotient; }
};

// sigmoid(x) is q = e/(1+e) with e = e^−|x|, which cannot overflow, where x is negative (small results keep their relative accuracy),
// else 1 − q; tanh(x) is ± q = (e−1)/(e+1) with e − 1 = e^2|x| − 1, which keeps it where x is small. What the reciprocal does not
// wait for, the numerator, the factor and the summand, is free. A NaN is lost in the minimum, and comes back as the factor.
__device__ __forceinline__ Squashed squash(float x, const Squash& kind) {
    int n;
    const float expm1 = reduced_expm1(fminf(fabsf(x), kind.limit), kind.unit, kind.log2_unit, n);
    const int half = n >> 1;
    const float low = power_of_two(half), high = power_of_two(n - half);
    const float scale = low * high;
    const float denominator = fmaf(scale, expm1, scale + 1.0f);
    const float e = (1.0f + expm1) * low * high;
    const float e_minus_1 = fmaf(scale, expm1, scale - 1.0f);
    const u32 numerator = (__float_as_uint(e_minus_1) & kind.tanh_bits) | (__float_as_uint(e) & ~kind.tanh_bits);
    const float sign = __uint_as_float((__float_as_uint(x) & 0x80000000u) ^ kind.one);
    const float factor = x == x ? sign : x;
    return {quotient(__uint_as_float(numerator), denominator), factor, fmaf(kind.slope, factor, kind.offset)};
}

__device__ __forceinline__ float strict_sigmoid(float x) { return squash(x, Squash(false)).value(); }
__device__ __forceinline__ float strict_tanh(float x) { return squash(x, Squash(true)).value(); }

// Natural logarithm (Cephes' logf): x = 2^n·(1+f) with 1+f in [√½, √2). NaN for x < 0 and NaN, −∞ for 0.
__device__ __forceinline__ float strict_log(float x) {
    if (!(x > 0.0f)) return x == 0.0f ? __uint_as_float(0xff800000u) : __uint_as_float(0x7fffffffu);
    if (x == __uint_as_float(0x7f800000u)) return x;
    int n = 0;
    if (x < 1.17549435e-38f) {  // subnormal
        x *= 8388608.0f;
        n = -23;
    }
    const u32 bits = __float_as_uint(x);
    n += (int)(bits >> 23) - 126;
    float m = __uint_as_float((bits & 0x007fffffu) | 0x3f000000u);  // [½, 1)
    if (m < 0.707106781f) {
        m += m;
        n -= 1;
    }
    const float f = m - 1.0f;
    float p = 7.0376836292e-2f;
    p = fmaf(p, f, -1.1514610310e-1f);
    p = fmaf(p, f, 1.1676998740e-1f);
    p = fmaf(p, f, -1.2420140846e-1f);
    p = fmaf(p, f, 1.4249322787e-1f);
    p = fmaf(p, f, -1.6668057665e-1f);
    p = fmaf(p, f, 2.0000714765e-1f);
    p = fmaf(p, f, -2.4999993993e-1f);
    p = fmaf(p, f, 3.3333331174e-1f);
    const float square = f * f;
    const float whole = (float)n;
    float y = p * f * square;
    y = fmaf(whole, -2.12194440e-4f, y);
    y = fmaf(-0.5f, square, y);
    return fmaf(whole, 0.693359375f, f + y);
}

// Derivatives, named by what they take.
__device__ __forceinline__ float d_sigmoid(float sigmoid_output) { return sigmoid_output * (1.0f - sigmoid_output); }
__device__ __forceinline__ float d_tanh(float tanh_output) { return fmaf(-tanh_output, tanh_output, 1.0f); }

// ---------------------------------------------------------------- LSTM

// A unit's four gates, activated.
struct GateValues {
    float i, f, g, o;
};

// All bits of the gate's own, none of the others'. By bits: selections would become branches, and lanes of a warp have different gates.
struct GateBits {
    u32 i, f, g, o;

    __device__ __forceinline__ explicit GateBits(u32 gate)
        : i(gate == GATE_I ? ~0u : 0u), f(gate == GATE_F ? ~0u : 0u), g(gate == GATE_G ? ~0u : 0u), o(gate == GATE_O ? ~0u : 0u) {}

    // From here on in registers, not computed anew where they are used.
    __device__ __forceinline__ void hold() { asm volatile("" : "+r"(i), "+r"(f), "+r"(g), "+r"(o)); }

    // Of four numbers the gate's own.
    __device__ __forceinline__ float of(float of_i, float of_f, float of_g, float of_o) const {
        return __uint_as_float((__float_as_uint(of_i) & i) | (__float_as_uint(of_f) & f) | (__float_as_uint(of_g) & g) |
                               (__float_as_uint(of_o) & o));
    }
};

// What the backward pass of a time step needs of its forward pass, and no gradient: the factor that takes dc_all (dh_all, if the gate
// is o) to the gradient by the gate's pre-activation, and the one that takes dh_all to its part of dc_all. own: v's of this gate.
__device__ __forceinline__ float gate_slope(u32 gate, const GateBits& bits, float own, const GateValues& v, float c_prev, float tanh_c) {
    const float slope = gate == GATE_G ? d_tanh(own) : d_sigmoid(own);
    return bits.of(v.g, c_prev, v.i, tanh_c) * slope;
}

__device__ __forceinline__ float state_slope(float o, float tanh_c) { return o * d_tanh(tanh_c); }

// ---------------------------------------------------------------- fours

// A place in shared memory, by its address there: one register, where a pointer that moves takes two and twice the arithmetic.
struct Place {
    u32 address;

    __device__ __forceinline__ Place(const void* at) : address((u32)__cvta_generic_to_shared(at)) {}

    // So many numbers of 4 bytes further.
    __device__ __forceinline__ Place operator+(u32 numbers) const {
        Place there = *this;
        there += numbers;
        return there;
    }
    __device__ __forceinline__ void operator+=(u32 numbers) { address += 4 * numbers; }
    __device__ __forceinline__ void operator-=(u32 numbers) { address -= 4 * numbers; }
};

// Four numbers of shared memory, at a multiple of 16 bytes. One instruction, as it stands: left to itself, the compiler splits and
// rejoins such loads, and not the same way in every run of it.
__device__ __forceinline__ float4 shared4(Place at) {
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(at.address));
    return x;
}

// Two, at a multiple of 8 bytes.
__device__ __forceinline__ float2 shared2(Place at) {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(at.address));
    return x;
}

// One number of shared memory, asked for where this stands.
__device__ __forceinline__ float shared1(Place at) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at.address));
    return x;
}

// One number to shared memory.
__device__ __forceinline__ void store_shared1(Place at, float x) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(at.address), "f"(x) : "memory");
}

// One number to shared memory, or nothing; no branch, which whatever stands behind it would wait for.
__device__ __forceinline__ void store_if(bool condition, Place at, float x) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p st.shared.f32 [%0], %1; }" ::"r"(at.address), "f"(x), "r"((u32)condition)
                 : "memory");
}

// Four numbers to shared memory, at a multiple of 16 bytes. One instruction: left to itself, the compiler makes four of it where it
// loses sight of the alignment, and each of those touches a quarter of the banks four times.
__device__ __forceinline__ void store_shared4(Place at, float4 x) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at.address), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}

// One number of global memory, or 0, asked for where this stands: elsewhere it may share a barrier of the scoreboard with loads of
// shared memory, and who waits for those waits for this one, too.
__device__ __forceinline__ float load_if(bool condition, const float* at) {
    float x;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.f32 %0, 0f00000000; @p ld.global.f32 %0, [%1]; }"
                 : "=f"(x)
                 : "l"(__cvta_generic_to_global(at)), "r"((u32)condition));
    return x;
}

// Four numbers to global memory, at a multiple of 16 bytes; one instruction, for the same reason.
__device__ __forceinline__ void store4(float* at, float x, float y, float z, float w) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "f"(x), "f"(y), "f"(z), "f"(w)
                 : "memory");
}

// Elements [at, at + 4) of an array of n: one load where `aligned` (a multiple of 16 bytes, with n a multiple of 4), 0 beyond n.
__device__ __forceinline__ float4 load4(const float* from, u64 at, u64 n, bool aligned) {
    if (aligned) return at < n ? *(const float4*)(from + at) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return make_float4(at < n ? from[at] : 0.0f, at + 1 < n ? from[at + 1] : 0.0f, at + 2 < n ? from[at + 2] : 0.0f,
                       at + 3 < n ? from[at + 3] : 0.0f);
}

// Elements [at, at + 2) likewise, of an array of an even n at a multiple of 8 bytes.
__device__ __forceinline__ float2 load2(const float* from, u64 at, u64 n, bool aligned) {
    if (aligned) return at < n ? *(const float2*)(from + at) : make_float2(0.0f, 0.0f);
    return make_float2(at < n ? from[at] : 0.0f, at + 1 < n ? from[at + 1] : 0.0f);
}

__device__ __forceinline__ void store4(float* to, u64 at, u64 n, bool aligned, float4 value) {
    if (aligned) {
        if (at < n) *(float4*)(to + at) = value;
        return;
    }
    if (at < n) to[at] = value.x;
    if (at + 1 < n) to[at + 1] = value.y;
    if (at + 2 < n) to[at + 2] = value.z;
    if (at + 3 < n) to[at + 3] = value.w;
}

// ---------------------------------------------------------------- reductions

// Sums over the warp by halves; every lane gets the same bits (a + b is b + a).
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ __forceinline__ u32 warp_sum(u32 x) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}
