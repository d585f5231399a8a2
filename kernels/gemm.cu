// Tiled matrix product: out[m,n] (+)= (bias +) op(a)·op(b).
// Names tell how a and b are stored: n as they are ([m,k], [k,n]), t transposed ([k,m], [n,k]). All row-major.
//
// A block computes a GEMM_TILE × GEMM_TILE tile with GEMM_THREADS threads, 4×4 elements a thread; strips of GEMM_K of k pass
// through shared memory, double-buffered, one barrier a strip. Each element is one chain of fmaf in the order of k, from bias[col]
// (or 0): the bits do not depend on the tiling.
//   _tall     GEMM_TALL × GEMM_TILE, 8×4 elements a thread: products of many tiles
//   _narrow   GEMM_TILE × GEMM_NARROW, 4×1 elements a thread: products of few columns
// Slices: blockIdx.z sums only k in [z·k_slice, (z+1)·k_slice) and writes out + z·slice_stride; there is no bias then.
// Launch: grid (⌈n/columns of a tile⌉, ⌈m/rows of a tile⌉, slices).
//
//   column_sums   out[col] (+)= sum over k of a[k,n], in the order of k, in slices likewise; a thread a column.
//   _bf16 _f16    a and b are stored in 16 bits, bias and out in f32
#include "half.cuh"

constexpr u32 SIDE_THREADS = GEMM_TILE / 4;  // along each side of a tile
static_assert(SIDE_THREADS * SIDE_THREADS == GEMM_THREADS, "a thread computes 4 x 4 elements of a square tile");
static_assert(GEMM_NARROW == SIDE_THREADS, "or 4 x 1 of a narrow one");
static_assert(GEMM_TALL == 2 * GEMM_TILE, "or 8 x 4 of a tall one");
static_assert(GEMM_K % 4 == 0, "strips are loaded by fours");

// Fours that a thread loads of a strip whose side has this many.
template <u32 SIDE>
constexpr u32 LOADS = (SIDE * GEMM_K / 4 + GEMM_THREADS - 1) / GEMM_THREADS;
// Rows of a tile in shared memory begin at different banks, and at multiples of 16 bytes.
template <u32 SIDE>
constexpr u32 PITCH = SIDE + 4;

// Four `load` of this thread's share of a strip of an operand: its place along the tile's side and along k. Neighbouring
// threads read neighbouring addresses in either storage. False: there is none.
template <bool ALONG_K, u32 SIDE>
__device__ __forceinline__ bool place(u32 load, u32& side, u32& k) {
    const u32 i = load * GEMM_THREADS + threadIdx.x;
    side = ALONG_K ? i / (GEMM_K / 4) : i % (SIDE / 4) * 4;
    k = ALONG_K ? i % (GEMM_K / 4) * 4 : i / (SIDE / 4);
    return SIDE * GEMM_K / 4 % GEMM_THREADS == 0 || i < SIDE * GEMM_K / 4;
}

// A strip of an operand, whose side has `extent` elements; what lies outside is 0. ALONG_K: stored [side,k], else [k,side].
template <bool ALONG_K, u32 SIDE, typename T>
__device__ __forceinline__ void load_strip(const T* operand, bool aligned, u32 first_side, u32 extent, u32 first_k, u32 end_k,
                                           u32 k_extent, float4 (&strip)[LOADS<SIDE>]) {
#pragma unroll
    for (u32 load = 0; load < LOADS<SIDE>; ++load) {
        u32 side, k;
        if (!place<ALONG_K, SIDE>(load, side, k)) continue;
        side += first_side;
        k += first_k;
        const u64 row = ALONG_K ? (u64)side * k_extent : (u64)k * extent;
        const u32 end = ALONG_K ? (side < extent ? end_k : 0) : (k < end_k ? extent : 0);
        strip[load] = load4(operand + row, ALONG_K ? k : side, end, aligned);
    }
}

template <bool ALONG_K, u32 SIDE>
__device__ __forceinline__ void store_strip(const float4 (&strip)[LOADS<SIDE>], float (*tile)[PITCH<SIDE>]) {
#pragma unroll
    for (u32 load = 0; load < LOADS<SIDE>; ++load) {
        u32 side, k;
        if (!place<ALONG_K, SIDE>(load, side, k)) continue;
        if constexpr (ALONG_K) {
            tile[k][side] = strip[load].x;
            tile[k + 1][side] = strip[load].y;
            tile[k + 2][side] = strip[load].z;
            tile[k + 3][side] = strip[load].w;
        } else {
            *(float4*)&tile[k][side] = strip[load];
        }
    }
}

// Whether a strip's fours are loads of four: none then lies across the end of a row or of a slice.
template <bool ALONG_K, typename T>
__device__ __forceinline__ bool fours(const T* operand, u32 extent, u32 k_extent, u32 k_slice) {
    return is_aligned(operand) && (ALONG_K ? k_extent % 4 == 0 && (k_slice % 4 == 0 || k_slice >= k_extent) : extent % 4 == 0);
}

template <bool TA, bool TB, u32 TALL, u32 WIDE, typename T>
__device__ __forceinline__ void gemm(const T* a, const T* b, const float* bias, float* out, u32 m, u32 n, u32 k,
                                     u32 k_slice, u64 slice_stride, u32 accumulate) {
    constexpr u32 ROWS = TALL / SIDE_THREADS;  // of a thread: groups of four, GEMM_TILE rows apart
    constexpr u32 COLS = WIDE / SIDE_THREADS;  // of a thread
    __shared__ __align__(16) float a_tile[2][GEMM_K][PITCH<TALL>];
    __shared__ __align__(16) float b_tile[2][GEMM_K][PITCH<WIDE>];
    const u32 first_row = blockIdx.y * TALL;
    const u32 first_col = blockIdx.x * WIDE;
    // Neighbouring lanes have the same rows, the next but one the same columns: shared memory returns fours of both at twice the rate.
    const u32 row_thread = COLS == 4 ? threadIdx.x / 2 % 2 + threadIdx.x / (2 * SIDE_THREADS) * 2 : threadIdx.x / SIDE_THREADS;
    const u32 col_thread = COLS == 4 ? threadIdx.x % 2 + threadIdx.x / 4 % (SIDE_THREADS / 2) * 2 : threadIdx.x % SIDE_THREADS;
    const u32 row = row_thread * 4;
    const u32 col = col_thread * COLS;
    const u64 begin_k = (u64)blockIdx.z * k_slice;
    const u32 end_k = (u32)min((u64)k, begin_k + k_slice);

    float sum[ROWS][COLS];
#pragma unroll
    for (u32 j = 0; j < COLS; ++j) {
        const bool from_bias = bias && first_col + col + j < n;
        const float start = from_bias ? bias[first_col + col + j] : 0.0f;
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i) sum[i][j] = start;
    }

    if (begin_k < end_k) {
        const bool a_fours = fours<!TA>(a, m, k, k_slice);
        const bool b_fours = fours<TB>(b, n, k, k_slice);
        float4 a_strip[LOADS<TALL>] = {}, b_strip[LOADS<WIDE>] = {};
        u32 k0 = (u32)begin_k;
        load_strip<!TA, TALL>(a, a_fours, first_row, m, k0, end_k, k, a_strip);
        load_strip<TB, WIDE>(b, b_fours, first_col, n, k0, end_k, k, b_strip);
        u32 buffer = 0;
        while (true) {
            store_strip<!TA, TALL>(a_strip, a_tile[buffer]);
            store_strip<TB, WIDE>(b_strip, b_tile[buffer]);
            __syncthreads();
            const bool more = end_k - k0 > GEMM_K;
            if (more) {
                k0 += GEMM_K;
                load_strip<!TA, TALL>(a, a_fours, first_row, m, k0, end_k, k, a_strip);
                load_strip<TB, WIDE>(b, b_fours, first_col, n, k0, end_k, k, b_strip);
            }
#pragma unroll
            for (u32 inner = 0; inner < GEMM_K; ++inner) {
                float xs[ROWS], ys[COLS];
#pragma unroll
                for (u32 i = 0; i < ROWS; i += 4) {
                    const float4 x = *(const float4*)&a_tile[buffer][inner][row + i / 4 * GEMM_TILE];
                    xs[i] = x.x, xs[i + 1] = x.y, xs[i + 2] = x.z, xs[i + 3] = x.w;
                }
                if constexpr (COLS == 4) {
                    const float4 y = *(const float4*)&b_tile[buffer][inner][col];
                    ys[0] = y.x, ys[1] = y.y, ys[2] = y.z, ys[3] = y.w;
                } else {
                    ys[0] = b_tile[buffer][inner][col];
                }
#pragma unroll
                for (u32 i = 0; i < ROWS; ++i) {
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
            for (u32 i = 0; i < ROWS; ++i) {
                const u32 at = first_row + row + i % 4 + i / 4 * GEMM_TILE;
                if (at < m) store4(out + (u64)at * n + first_col + col, sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
            }
            return;
        }
    }
#pragma unroll
    for (u32 i = 0; i < ROWS; ++i) {
#pragma unroll
        for (u32 j = 0; j < COLS; ++j) {
            const u32 at_row = first_row + row + i % 4 + i / 4 * GEMM_TILE;
            if (at_row < m && first_col + col + j < n) {
                float* at = out + (u64)at_row * n + first_col + col + j;
                *at = accumulate ? *at + sum[i][j] : sum[i][j];
            }
        }
    }
}

// Blocks that a multiprocessor shall have room for: left to itself the compiler makes other choices for other architectures, and spills.
#define GEMM(name, ta, tb, tall, wide, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS, tall == GEMM_TALL ? 2 : 4)                                         \
    name(const T* a, const T* b, const float* bias, float* out, u32 m, u32 n, u32 k, u32 k_slice, u64 slice_stride,             \
         u32 accumulate) {                                                                                                      \
        gemm<ta, tb, tall, wide>(a, b, bias, out, m, n, k, k_slice, slice_stride, accumulate);                                  \
    }
#define GEMMS(kind, tall, wide, suffix, T)                                                                                      \
    GEMM(gemm_nn##kind##suffix, false, false, tall, wide, T)                                                                    \
    GEMM(gemm_nt##kind##suffix, false, true, tall, wide, T)                                                                     \
    GEMM(gemm_tn##kind##suffix, true, false, tall, wide, T)
#define EVERY_GEMM(suffix, T)                                                                                                   \
    GEMMS(, GEMM_TILE, GEMM_TILE, suffix, T)                                                                                    \
    GEMMS(_tall, GEMM_TALL, GEMM_TILE, suffix, T)                                                                               \
    GEMMS(_narrow, GEMM_TILE, GEMM_NARROW, suffix, T)
EVERY_GEMM(, float)
GEMM(gemm_tt, true, true, GEMM_TILE, GEMM_TILE, float)
GEMM(gemm_tt_narrow, true, true, GEMM_TILE, GEMM_NARROW, float)
EVERY_GEMM(_bf16, bf16)
EVERY_GEMM(_f16, f16)

template <typename T>
__device__ __forceinline__ void sum_columns(const T* a, float* out, u32 k, u32 n, u32 k_slice, u64 slice_stride, u32 accumulate) {
    const u32 col = blockIdx.x * COLUMN_THREADS + threadIdx.x;
    if (col >= n) return;
    const u64 begin_k = (u64)blockIdx.y * k_slice;
    const u64 end_k = min((u64)k, begin_k + k_slice);
    float sum = 0.0f;
    // So many loads are under way at once: few threads have many rows.
#pragma unroll 32
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
