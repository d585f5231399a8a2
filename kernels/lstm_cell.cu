// LSTM, one time step, any H (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; one bias, no peepholes).
//
//   forward    pre = b + x·W + h_prev·U, or pre = given + x·W + h_prev·U;  i, f, o = sigmoid;  g = tanh
//              c = f∘c_prev + i∘g      h = o∘tanh(c)
//   backward   dh_all = dpre_next·Uᵀ + dh + dh_more      dc_all = dc + dh_all∘o∘(1 − tanh(c)²)
//              dpre_i = dc_all∘g∘i(1−i)   dpre_f = dc_all∘c_prev∘f(1−f)   dpre_g = dc_all∘i∘(1−g²)
//              dpre_o = dh_all∘tanh(c)∘o(1−o)
//              dc_prev = dc_all∘f
// Shapes: x [B,E], h h_prev c c_prev dh dc [B,H], W [E,4H], U [H,4H], b [4H], gates pre dpre [B,4H]; gates are the activated ones.
// Backward of a time step takes dpre of the step after it, so that one launch a step does product, activations and state; dx, dW,
// dU and db are products of dpre that the host forms by gemm.
//
// A block computes CELL_ROWS batch rows × CELL_UNITS units; a thread two rows of one unit, all four gates. Strips of CELL_K of the
// summed dimension pass through shared memory. Every sum is one chain of fmaf: inputs first, then the recurrent part.
//   _bf16 _f16  x, h, W, U, gates and dpre are stored in 16 bits (src/backend/precision.rs)
// Launch: grid (⌈H/CELL_UNITS⌉, ⌈B/CELL_ROWS⌉), block CELL_THREADS.
#include "half.cuh"

// Wide: between two strips every thread waits for memory once.
constexpr u32 CELL_K = 64;
constexpr u32 PIECE = 32;
static_assert(CELL_K == 2 * PIECE, "two pieces a strip");
constexpr u32 ROW_PAIRS = CELL_ROWS / 2;
static_assert(CELL_THREADS == ROW_PAIRS * CELL_UNITS, "a thread computes two rows of a unit");
static_assert(CELL_ROWS * CELL_K % CELL_THREADS == 0 && CELL_UNITS * CELL_K % CELL_THREADS == 0, "strips are loaded evenly");

// A strip [CELL_ROWS, CELL_K] of a row-major operand [rows, k]; what lies outside is 0.
template <typename T>
__device__ __forceinline__ void load_rows(const T* operand, u32 first_row, u32 rows, u32 first_k, u32 k,
                                          float (*strip)[CELL_ROWS + 1]) {
#pragma unroll
    for (u32 i = threadIdx.x; i < CELL_ROWS * CELL_K; i += CELL_THREADS) {
        const u32 inner = i % CELL_K;
        const u32 row = i / CELL_K;
        const bool inside = first_row + row < rows && first_k + inner < k;
        strip[inner][row] = inside ? widen(operand[(u64)(first_row + row) * k + first_k + inner]) : 0.0f;
    }
}

// Sums of N numbers by quads of pieces.
template <u32 N>
struct Quads {
    float (&sum)[N];
    float held[N] = {};
    bool holds = false;

    __device__ __forceinline__ explicit Quads(float (&sum)[N]) : sum(sum) {}

    // Two pieces more.
    __device__ __forceinline__ void add(const float (&pieces)[2][N]) {
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            const float pair = pieces[0][i] + pieces[1][i];
            if (holds) {
                sum[i] += held[i] + pair;
            } else {
                held[i] = pair;
            }
        }
        holds = !holds;
    }

    // No more.
    __device__ __forceinline__ void end() {
        if (!holds) return;
#pragma unroll
        for (u32 i = 0; i < N; ++i) sum[i] += held[i] + 0.0f;
    }
};

// The products of a piece that begins at k in a dimension of `extent`, a multiple of 16: beyond the dimension strips hold zeros.
__device__ __forceinline__ u32 piece_length(u32 k, u32 extent) { return k < extent ? min(PIECE, (extent - k + 15) / 16 * 16) : 0; }

// sum[r] += operand[row r, 0..k] · weights[0..k, the four gates of this thread's unit]. Every thread of the block takes part.
template <typename T>
__device__ __forceinline__ void add_product(const T* operand, const T* weights, u32 k, u32 batch, u32 hidden,
                                            float (*rows)[CELL_ROWS + 1], float4 (*gates)[CELL_UNITS], float (&sum)[2 * GATES]) {
    const u32 first_row = blockIdx.y * CELL_ROWS;
    const u32 first_unit = blockIdx.x * CELL_UNITS;
    const u32 unit = threadIdx.x % CELL_UNITS;
    const u32 pair = threadIdx.x / CELL_UNITS;
    Quads<2 * GATES> quads(sum);
    for (u32 first_k = 0; first_k < k; first_k += CELL_K) {
        load_rows(operand, first_row, batch, first_k, k, rows);
#pragma unroll
        for (u32 i = threadIdx.x; i < CELL_UNITS * CELL_K * GATES; i += CELL_THREADS) {
            const u32 at_unit = i % CELL_UNITS;
            const u32 gate = i / CELL_UNITS % GATES;
            const u32 inner = i / (CELL_UNITS * GATES);
            const bool inside = first_unit + at_unit < hidden && first_k + inner < k;
            const u64 at = (u64)(first_k + inner) * GATES * hidden + gate * hidden + first_unit + at_unit;
            ((float*)&gates[inner][at_unit])[gate] = inside ? widen(weights[at]) : 0.0f;
        }
        __syncthreads();
        float pieces[2][2 * GATES] = {};
#pragma unroll
        for (u32 piece = 0; piece < 2; ++piece) {
            const u32 begin = piece * PIECE;
            const u32 end = begin + piece_length(first_k + begin, k);
#pragma unroll 16
            for (u32 inner = begin; inner < end; ++inner) {
                const float4 w = gates[inner][unit];
#pragma unroll
                for (u32 r = 0; r < 2; ++r) {
                    const float factor = rows[inner][pair + r * ROW_PAIRS];
                    float* chain = &pieces[piece][r * GATES];
                    chain[GATE_I] = fmaf(factor, w.x, chain[GATE_I]);
                    chain[GATE_F] = fmaf(factor, w.y, chain[GATE_F]);
                    chain[GATE_G] = fmaf(factor, w.z, chain[GATE_G]);
                    chain[GATE_O] = fmaf(factor, w.w, chain[GATE_O]);
                }
            }
        }
        quads.add(pieces);
        // The strips are written anew.
        __syncthreads();
    }
    quads.end();
}

// pre may be null (then the sums start from b) and may be the same array as gates: a thread reads what it later writes.
template <typename T>
__device__ __forceinline__ void cell_forward(const T* x, const T* h_prev, const float* c_prev, const T* w, const T* u, const float* b,
                                             const float* pre, T* gates, T* h, float* c, u32 batch, u32 e, u32 hidden) {
    __shared__ float row_strip[CELL_K][CELL_ROWS + 1];
    __shared__ float4 gate_strip[CELL_K][CELL_UNITS];
    const u32 unit = blockIdx.x * CELL_UNITS + threadIdx.x % CELL_UNITS;
    const u32 first_row = blockIdx.y * CELL_ROWS + threadIdx.x / CELL_UNITS;

    float sum[2 * GATES];
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        const u32 row = first_row + r * ROW_PAIRS;
#pragma unroll
        for (u32 gate = 0; gate < GATES; ++gate) {
            const u64 col = (u64)gate * hidden + unit;
            const bool inside = unit < hidden && row < batch;
            sum[r * GATES + gate] = !inside ? 0.0f : pre ? pre[(u64)row * GATES * hidden + col] : b[col];
        }
    }
    add_product(x, w, e, batch, hidden, row_strip, gate_strip, sum);
    add_product(h_prev, u, hidden, batch, hidden, row_strip, gate_strip, sum);

#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        const u32 row = first_row + r * ROW_PAIRS;
        if (unit >= hidden || row >= batch) continue;
        const float i = strict_sigmoid(sum[r * GATES + GATE_I]);
        const float f = strict_sigmoid(sum[r * GATES + GATE_F]);
        const float g = strict_tanh(sum[r * GATES + GATE_G]);
        const float o = strict_sigmoid(sum[r * GATES + GATE_O]);
        const u64 state = (u64)row * hidden + unit;
        T* gate_row = gates + (u64)row * GATES * hidden + unit;
        gate_row[GATE_I * hidden] = narrow<T>(i);
        gate_row[GATE_F * hidden] = narrow<T>(f);
        gate_row[GATE_G * hidden] = narrow<T>(g);
        gate_row[GATE_O * hidden] = narrow<T>(o);
        const float c_new = fmaf(f, c_prev[state], i * g);
        c[state] = c_new;
        h[state] = narrow<T>(o * strict_tanh(c_new));
    }
}

// Null: dpre_next (no later step), dh, dh_more, dc count as 0. dc_prev may be the same array as dc.
template <typename T>
__device__ __forceinline__ void cell_backward(const T* dpre_next, const T* u, const T* gates, const float* c_prev, const float* c,
                                              const float* dh, const float* dh_more, const float* dc, T* dpre, float* dc_prev,
                                              u32 batch, u32 hidden) {
    __shared__ float row_strip[CELL_K][CELL_ROWS + 1];
    __shared__ float u_strip[CELL_K][CELL_UNITS + 1];
    const u32 at_unit = threadIdx.x % CELL_UNITS;
    const u32 pair = threadIdx.x / CELL_UNITS;
    const u32 unit = blockIdx.x * CELL_UNITS + at_unit;
    const u32 columns = GATES * hidden;

    float dh_all[2] = {0.0f, 0.0f};
    if (dpre_next) {
        Quads<2> quads(dh_all);
        for (u32 first_k = 0; first_k < columns; first_k += CELL_K) {
            load_rows(dpre_next, blockIdx.y * CELL_ROWS, batch, first_k, columns, row_strip);
#pragma unroll
            for (u32 i = threadIdx.x; i < CELL_UNITS * CELL_K; i += CELL_THREADS) {
                const u32 inner = i % CELL_K;
                const u32 strip_unit = i / CELL_K;
                const u32 from = blockIdx.x * CELL_UNITS + strip_unit;
                const bool inside = from < hidden && first_k + inner < columns;
                u_strip[inner][strip_unit] = inside ? widen(u[(u64)from * columns + first_k + inner]) : 0.0f;
            }
            __syncthreads();
            float pieces[2][2] = {};
#pragma unroll
            for (u32 piece = 0; piece < 2; ++piece) {
                const u32 begin = piece * PIECE;
                const u32 end = begin + piece_length(first_k + begin, columns);
#pragma unroll 16
                for (u32 inner = begin; inner < end; ++inner) {
#pragma unroll
                    for (u32 r = 0; r < 2; ++r) {
                        pieces[piece][r] = fmaf(row_strip[inner][pair + r * ROW_PAIRS], u_strip[inner][at_unit], pieces[piece][r]);
                    }
                }
            }
            quads.add(pieces);
            // The strips are written anew.
            __syncthreads();
        }
        quads.end();
    }

#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        const u32 row = blockIdx.y * CELL_ROWS + pair + r * ROW_PAIRS;
        if (unit >= hidden || row >= batch) continue;
        const u64 state = (u64)row * hidden + unit;
        const T* gate_row = gates + (u64)row * columns + unit;
        const GateValues v = {widen(gate_row[GATE_I * hidden]), widen(gate_row[GATE_F * hidden]),
                              widen(gate_row[GATE_G * hidden]), widen(gate_row[GATE_O * hidden])};
        float dh_sum = dh_all[r];
        if (dh) dh_sum += dh[state];
        if (dh_more) dh_sum += dh_more[state];
        const float tanh_c = strict_tanh(c[state]);
        const float dc_all = fmaf(dh_sum, state_slope(v.o, tanh_c), dc ? dc[state] : 0.0f);
        T* dpre_row = dpre + (u64)row * columns + unit;
#pragma unroll
        for (u32 gate = 0; gate < GATES; ++gate) {
            const float own = gate == GATE_I ? v.i : gate == GATE_F ? v.f : gate == GATE_G ? v.g : v.o;
            const float slope = gate_slope(gate, GateBits(gate), own, v, c_prev[state], tanh_c);
            dpre_row[gate * hidden] = narrow<T>((gate == GATE_O ? dh_sum : dc_all) * slope);
        }
        dc_prev[state] = dc_all * v.f;
    }
}

#define CELL(suffix, T)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(CELL_THREADS)                                                                  \
    lstm_cell_forward##suffix(const T* x, const T* h_prev, const float* c_prev, const T* w, const T* u, const float* b,         \
                              const float* pre, T* gates, T* h, float* c, u32 batch, u32 e, u32 hidden) {                       \
        cell_forward(x, h_prev, c_prev, w, u, b, pre, gates, h, c, batch, e, hidden);                                           \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(CELL_THREADS)                                                                  \
    lstm_cell_backward##suffix(const T* dpre_next, const T* u, const T* gates, const float* c_prev, const float* c,             \
                               const float* dh, const float* dh_more, const float* dc, T* dpre, float* dc_prev, u32 batch,      \
                               u32 hidden) {                                                                                    \
        cell_backward(dpre_next, u, gates, c_prev, c, dh, dh_more, dc, dpre, dc_prev, batch, hidden);                           \
    }
CELL(, float)
CELL(_bf16, bf16)
CELL(_f16, f16)
