// Tiled matrix product: out[m,n] (+)= (bias +) op(a)·op(b).
// Names tell how a and b are stored: n as they are ([m,k], [k,n]), t transposed ([k,m], [n,k]). All row-major.
//
// A block computes a GEMM_TILE × GEMM_TILE tile with GEMM_THREADS threads, 4×4 elements a thread (_narrow: GEMM_TILE × GEMM_NARROW,
// 4×1, for products of few columns); strips of GEMM_K of k pass
// through shared memory, double-buffered, one barrier a strip. Each element is one chain of fmaf in the order of k, from bias[col]
// (or 0): the bits do not depend on the tiling.
// Slices: blockIdx.z sums only k in [z·k_slice, (z+1)·k_slice) and writes out + z·slice_stride; there is no bias then.
// Launch: grid (⌈n/GEMM_TILE⌉ or ⌈n/GEMM_NARROW⌉, ⌈m/GEMM_TILE⌉, slices).
//
//   column_sums   out[col] (+)= sum over k of a[k,n], in the order of k, in slices likewise; a thread a column.
//   _bf16 _f16    a and b are stored in 16 bits, bias and out in f32
#include "half.cuh"

constexpr u32 PER_THREAD = 4;
constexpr u32 TILE_THREADS = GEMM_TILE / PER_THREAD;  // along each side
// Elements that a thread loads of a strip whose side has this many.
template <u32 SIDE>
constexpr u32 LOADS = SIDE * GEMM_K / GEMM_THREADS;
// Rows of a tile in shared memory begin at different banks, and at multiples of 16 bytes.
template <u32 SIDE>
constexpr u32 PITCH = SIDE + 4;
static_assert(TILE_THREADS * TILE_THREADS == GEMM_THREADS, "a thread computes PER_THREAD x PER_THREAD elements");
static_assert(GEMM_NARROW == TILE_THREADS, "or PER_THREAD x 1");

// Element `load` of this thread's share of a strip of an operand: its place along the tile's side and along k. Neighbouring
// threads read neighbouring addresses in either storage.
template <bool ALONG_K, u32 SIDE>
__device__ __forceinline__ void place(u32 load, u32& side, u32& k) {
    const u32 i = load * GEMM_THREADS + threadIdx.x;
    side = ALONG_K ? i / GEMM_K : i % SIDE;
    k = ALONG_K ? i % GEMM_K : i / SIDE;
}

// A strip of an operand, whose side has `extent` elements; what lies outside is 0. ALONG_K: stored [side,k], else [k,side].
template <bool ALONG_K, u32 SIDE, typename T>
__device__ __forceinline__ void load_strip(const T* operand, u32 first_side, u32 extent, u32 first_k, u32 end_k, u32 k_extent,
                                           float (&strip)[LOADS<SIDE>]) {
#pragma unroll
    for (u32 load = 0; load < LOADS<SIDE>; ++load) {
        u32 side, k;
        place<ALONG_K, SIDE>(load, side, k);
        side += first_side;
        k += first_k;
        const bool inside = side < extent && k < end_k;
        strip[load] = inside ? widen(operand[ALONG_K ? (u64)side * k_extent + k : (u64)k * extent + side]) : 0.0f;
    }
}

template <bool ALONG_K, u32 SIDE>
__device__ __forceinline__ void store_strip(const float (&strip)[LOADS<SIDE>], float (*tile)[PITCH<SIDE>]) {
#pragma unroll
    for (u32 load = 0; load < LOADS<SIDE>; ++load) {
        u32 side, k;
        place<ALONG_K, SIDE>(load, side, k);
        tile[k][side] = strip[load];
    }
}

template <bool TA, bool TB, u32 WIDE, typename T>
__device__ __forceinline__ void gemm(const T* a, const T* b, const float* bias, float* out, u32 m, u32 n, u32 k,
                                     u32 k_slice, u64 slice_stride, u32 accumulate) {
    constexpr u32 COLS = WIDE / TILE_THREADS;  // of a thread
    __shared__ __align__(16) float a_tile[2][GEMM_K][PITCH<GEMM_TILE>];
    __shared__ __align__(16) float b_tile[2][GEMM_K][PITCH<WIDE>];
    const u32 first_row = blockIdx.y * GEMM_TILE;
    const u32 first_col = blockIdx.x * WIDE;
    const u32 row = threadIdx.x / TILE_THREADS * PER_THREAD;
    const u32 col = threadIdx.x % TILE_THREADS * COLS;
    const u64 begin_k = (u64)blockIdx.z * k_slice;
    const u32 end_k = (u32)min((u64)k, begin_k + k_slice);

    float sum[PER_THREAD][COLS];
#pragma unroll
    for (u32 j = 0; j < COLS; ++j) {
        const bool from_bias = bias && first_col + col + j < n;
        const float start = from_bias ? bias[first_col + col + j] : 0.0f;
#pragma unroll
        for (u32 i = 0; i < PER_THREAD; ++i) sum[i][j] = start;
    }

    if (begin_k < end_k) {
        float a_strip[LOADS<GEMM_TILE>], b_strip[LOADS<WIDE>];
        u32 k0 = (u32)begin_k;
        load_strip<!TA, GEMM_TILE>(a, first_row, m, k0, end_k, k, a_strip);
        load_strip<TB, WIDE>(b, first_col, n, k0, end_k, k, b_strip);
        u32 buffer = 0;
        while (true) {
            store_strip<!TA, GEMM_TILE>(a_strip, a_tile[buffer]);
            store_strip<TB, WIDE>(b_strip, b_tile[buffer]);
            __syncthreads();
            const bool more = end_k - k0 > GEMM_K;
            if (more) {
                k0 += GEMM_K;
                load_strip<!TA, GEMM_TILE>(a, first_row, m, k0, end_k, k, a_strip);
                load_strip<TB, WIDE>(b, first_col, n, k0, end_k, k, b_strip);
            }
#pragma unroll
            for (u32 inner = 0; inner < GEMM_K; ++inner) {
                const float4 x = *(const float4*)&a_tile[buffer][inner][row];
                const float xs[PER_THREAD] = {x.x, x.y, x.z, x.w};
                float ys[COLS];
                if constexpr (COLS == 4) {
                    const float4 y = *(const float4*)&b_tile[buffer][inner][col];
                    ys[0] = y.x, ys[1] = y.y, ys[2] = y.z, ys[3] = y.w;
                } else {
                    ys[0] = b_tile[buffer][inner][col];
                }
#pragma unroll
                for (u32 i = 0; i < PER_THREAD; ++i) {
#pragma unroll
                    for (u32 j = 0; j < COLS; ++j) sum[i][j] = fmaf(xs[i], ys[j], sum[i][j]);
                }
            }
            if (!more) break;
            // The other buffer was last read before the barrier above.
            buffer ^= 1;
        }
    }

    out += blockIdx.z * slice_stride;
    if constexpr (COLS == 4) {
        if (!accumulate && n % 4 == 0 && ((u64)out & 15) == 0) {
            if (first_col + col >= n) return;
#pragma unroll
            for (u32 i = 0; i < PER_THREAD; ++i) {
                if (first_row + row + i >= m) continue;
                store4(out + (u64)(first_row + row + i) * n + first_col + col, sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
            }
            return;
        }
    }
#pragma unroll
    for (u32 i = 0; i < PER_THREAD; ++i) {
#pragma unroll
        for (u32 j = 0; j < COLS; ++j) {
            if (first_row + row + i < m && first_col + col + j < n) {
                float* at = out + (u64)(first_row + row + i) * n + first_col + col + j;
                *at = accumulate ? *at + sum[i][j] : sum[i][j];
            }
        }
    }
}

#define GEMM(name, ta, tb, wide, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS)                                                                  \
    name(const T* a, const T* b, const float* bias, float* out, u32 m, u32 n, u32 k, u32 k_slice, u64 slice_stride,             \
         u32 accumulate) {                                                                                                      \
        gemm<ta, tb, wide>(a, b, bias, out, m, n, k, k_slice, slice_stride, accumulate);                                        \
    }
#define GEMMS(suffix, T)                                                                                                        \
    GEMM(gemm_nn##suffix, false, false, GEMM_TILE, T)                                                                           \
    GEMM(gemm_nt##suffix, false, true, GEMM_TILE, T)                                                                            \
    GEMM(gemm_tn##suffix, true, false, GEMM_TILE, T)                                                                            \
    GEMM(gemm_nn_narrow##suffix, false, false, GEMM_NARROW, T)                                                                  \
    GEMM(gemm_nt_narrow##suffix, false, true, GEMM_NARROW, T)                                                                   \
    GEMM(gemm_tn_narrow##suffix, true, false, GEMM_NARROW, T)
GEMMS(, float)
GEMM(gemm_tt, true, true, GEMM_TILE, float)
GEMM(gemm_tt_narrow, true, true, GEMM_NARROW, float)
GEMMS(_bf16, bf16)
GEMMS(_f16, f16)

template <typename T>
__device__ __forceinline__ void sum_columns(const T* a, float* out, u32 k, u32 n, u32 k_slice, u64 slice_stride, u32 accumulate) {
    const u32 col = blockIdx.x * COLUMN_THREADS + threadIdx.x;
    if (col >= n) return;
    const u64 begin_k = (u64)blockIdx.y * k_slice;
    const u64 end_k = min((u64)k, begin_k + k_slice);
    float sum = 0.0f;
#pragma unroll 8
    for (u64 row = begin_k; row < end_k; ++row) sum += widen(a[row * n + col]);
    float* at = out + blockIdx.y * slice_stride + col;
    *at = accumulate ? *at + sum : sum;
}

#define COLUMN_SUMS(name, T)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)                                                                \
    name(const T* a, float* out, u32 k, u32 n, u32 k_slice, u64 slice_stride, u32 accumulate) {                                 \
        sum_columns(a, out, k, n, k_slice, slice_stride, accumulate);                                                           \
    }
COLUMN_SUMS(column_sums, float)
COLUMN_SUMS(column_sums_bf16, bf16)
COLUMN_SUMS(column_sums_f16, f16)
