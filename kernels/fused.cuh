// The kernels of fused.cu and fused_half.cu, whose head says what they do, over the storage type T of half.cuh: what is stored in 16
// bits (src/backend/precision.rs has the table) is rounded to T and lies as f32 in shared memory and registers.
#pragma once
#include "cross_entropy.cuh"
#include "lstm_sequence.cuh"

// Columns of W that step 4 takes at a time; its rows in shared memory begin at different banks.
constexpr u32 TILE_INPUTS = 16;
template <u32 HP>
constexpr u32 TILE_PITCH = GATES * HP + 4;

// T: what table, W, U and dense W are stored in.
template <typename T>
struct Weights {
    const T *table, *w, *u;
    const float* b;
    const T* dense_w;
    const float* dense_b;
};

// x[s] of all time steps from the table.
template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ void gather(const u32* ids, const T* table, float* x, u32 t, u32 e) {
    constexpr u32 QUADS = EP / 4;
    float4* fours = (float4*)x;
    for (u32 i = threadIdx.x; i < t * QUADS; i += GATES * HP) {
        const u64 id = ids[i / QUADS];
        fours[i] = load4(table + id * e, i % QUADS * 4, e, e % 4 == 0);
    }
}

// h[T] of one row, h and the gates rounded to T; h[s] lies in row s of h_rows, or s % 2 without KEEPS. KEEPS: gates and c of all time steps are kept too.
template <u32 HP, u32 EP, bool KEEPS, typename T>
__device__ __forceinline__ const float* walk(const float (&w)[EP], const float (&u)[HP], float bias, const float* x, float* gates,
                                             float* h_rows, float* c_rows, u32 t) {
    const u32 unit = threadIdx.x / GATES;
    const u32 gate = threadIdx.x % GATES;
    float c_now = 0.0f;
    if (gate == GATE_I) h_rows[unit] = 0.0f;
    if (KEEPS && gate == GATE_F) c_rows[unit] = 0.0f;
    // x has been written, too.
    __syncthreads();
    const auto input = [&](u32 s) {
        const float4* fours = (const float4*)(x + s * EP);
        float sum = bias;
#pragma unroll
        for (u32 j = 0; j < EP / 4; ++j) {
            const float4 part = shared4(fours + j);
            sum = fmaf(part.x, w[4 * j + 0], sum);
            sum = fmaf(part.y, w[4 * j + 1], sum);
            sum = fmaf(part.z, w[4 * j + 2], sum);
            sum = fmaf(part.w, w[4 * j + 3], sum);
        }
        return sum;
    };
    float next = input(0);
    for (u32 s = 0; s < t; ++s) {
        const float given = next;
        float chain[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        add_product((const float4*)(h_rows + (KEEPS ? s : s % 2) * HP), u, chain);
        next = input(min(s + 1, t - 1));
        const float pre = given + ((chain[0] + chain[1]) + (chain[2] + chain[3]));
        const float own = sigmoid_or_tanh(pre, gate == GATE_G);
        const GateValues v = exchange(own);
        c_now = fmaf(v.f, c_now, v.i * v.g);
        const float h_now = as_stored<T>(v.o * strict_tanh(c_now));
        if (gate == GATE_I) h_rows[(KEEPS ? s + 1 : (s + 1) % 2) * HP + unit] = h_now;
        if (KEEPS) {
            gates[s * GateRow<HP>::ROW + gate * GateRow<HP>::GATE + unit] = as_stored<T>(own);
            if (gate == GATE_F) c_rows[(s + 1) * HP + unit] = c_now;
        }
        __syncthreads();
    }
    return h_rows + (KEEPS ? t : t % 2) * HP;
}

// A thread's column of W and U, and its bias.
template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ float load_column(const Weights<T>& a, u32 e, u32 hidden, float (&w)[EP], float (&u)[HP]) {
    const u32 unit = threadIdx.x / GATES;
    const u32 columns = GATES * hidden;
    const u32 col = threadIdx.x % GATES * hidden + unit;
    const bool valid = unit < hidden;
#pragma unroll
    for (u32 k = 0; k < EP; ++k) w[k] = valid && k < e ? widen(a.w[k * columns + col]) : 0.0f;
#pragma unroll
    for (u32 k = 0; k < HP; ++k) u[k] = valid && k < hidden ? widen(a.u[k * columns + col]) : 0.0f;
    return valid ? a.b[col] : 0.0f;
}

// The row's logits: as dense_forward.
template <u32 HP, typename T>
__device__ __forceinline__ void classify(const float* h, const Weights<T>& a, float* logits, u32 hidden, u32 classes) {
    const u32 lane = threadIdx.x % WARP;
    for (u32 col = threadIdx.x / WARP; col < classes; col += GATES * HP / WARP) {
        float sum = 0.0f;
        for (u32 k = lane; k < hidden; k += WARP) sum = fmaf(h[k], widen(a.dense_w[(u64)k * classes + col]), sum);
        sum = warp_sum(sum);
        if (lane == 0) logits[col] = a.dense_b[col] + sum;
    }
    __syncthreads();
}

template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ void fused_step(const Step* steps, u32* cursor, const u32* data, const u32* labels, const u32* order,
                                           const float* class_weights, const Weights<T>& a, float* dx, float* partials, T* h_last,
                                           float* dlogits, float* loss,
                                           float* hits, u32 t, u32 e, u32 hidden, u32 classes, u64 stride, u32 shared_floats,
                                           const Scaling* scaling, u32* finite) {
    constexpr u32 THREADS = GATES * HP;
    extern __shared__ __align__(16) float shared[];
    float* gates = shared;
    float* h_rows = gates + t * GateRow<HP>::ROW;
    float* c_rows = h_rows + (t + 1) * HP;
    float* x = c_rows + (t + 1) * HP;
    float* w_tile = h_rows;  // when h, c and x have served
    float* logits = shared + shared_floats - 2 * classes;
    float* dlogits_own = logits + classes;
    const u32 unit = threadIdx.x / GATES;
    const u32 gate = threadIdx.x % GATES;
    const u32 place = gate * GateRow<HP>::GATE + unit;
    const bool valid = unit < hidden;
    const u32 columns = GATES * hidden;
    const u32 col = gate * hidden + unit;

    const u32 at = cursor[CURSOR_STEP];
    const Step step = steps[at];
    if (blockIdx.x == 0 && threadIdx.x == 0) cursor[CURSOR_LAST] = at;
    const u32 rows = step.rows;
    const u32 row = blockIdx.x;
    if (row >= rows) return;

    const u64 example = order[step.batch_start + row];
    const float* h;
    {
        float w_column[EP];
        float u_column[HP];
        gather<HP, EP>(data + example * t, a.table, x, t, e);
        const float bias = load_column<HP, EP>(a, e, hidden, w_column, u_column);
        h = walk<HP, EP, true, T>(w_column, u_column, bias, x, gates, h_rows, c_rows, t);
    }
    float du[HP];
    float dw[EP];
    float db = 0.0f;
    [[maybe_unused]] bool all_finite = true;
#pragma unroll
    for (u32 k = 0; k < HP; ++k) du[k] = 0.0f;
#pragma unroll
    for (u32 k = 0; k < EP; ++k) dw[k] = 0.0f;
    float kept[HP];
    load_slice<HP>(a.u, unit, hidden, gate, kept);
    classify<HP>(h, a, logits, hidden, classes);
    if (threadIdx.x < WARP) {
        const u32 label = labels[example];
        // Each lane's own classes: the probabilities, then the gradient in their place.
        const RowLoss found = softmax_row(logits, dlogits_own, classes, true, label);
        const float weight = class_weights ? class_weights[label] : 1.0f;
        for (u32 c = threadIdx.x; c < classes; c += WARP) {
            const float onehot = label == c ? 1.0f : 0.0f;
            float gradient = (dlogits_own[c] - onehot) / (float)rows * weight;
            if constexpr (SCALES<T>) {
                gradient *= scaling->scale;
                all_finite &= is_finite(gradient);
            }
            dlogits_own[c] = gradient;
            dlogits[(u64)row * classes + c] = gradient;
        }
        if (threadIdx.x == 0) {
            loss[row] = found.loss * weight;
            hits[row] = found.hit;
        }
    }
    if (threadIdx.x < hidden) h_last[(u64)row * hidden + threadIdx.x] = narrow<T>(h[threadIdx.x]);
    __syncthreads();
    float dh_now = 0.0f;
    if (valid) {
        for (u32 c = 0; c < classes; ++c) dh_now = fmaf(dlogits_own[c], widen(a.dense_w[(u64)unit * classes + c]), dh_now);
    }

    float dc_now = 0.0f;
    float c_now = c_rows[t * HP + unit];
    for (u32 s = t; s-- > 0;) {
        float* dpre = gates + s * GateRow<HP>::ROW;
        const float c_prev = c_rows[s * HP + unit];
        const float dpre_own = as_stored<T>(gate_backward(dpre[place], c_now, c_prev, dh_now, dc_now));
        c_now = c_prev;
        dpre[place] = dpre_own;
        __syncthreads();
        float chain[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        add_slice<HP>((const float4*)dpre, gate, kept, chain);
        dh_now = sum_slices(chain);
        add_column((const float4*)(h_rows + s * HP), dpre_own, du);
        add_column((const float4*)(x + s * EP), dpre_own, dw);
        db += dpre_own;
    }

    if (valid) {
        partials += row * stride;
#pragma unroll
        for (u32 k = 0; k < EP; ++k) {
            if (k < e) partials[k * columns + col] = dw[k];
            if constexpr (SCALES<T>) all_finite &= is_finite(dw[k]);
        }
        partials += (u64)e * columns;
#pragma unroll
        for (u32 k = 0; k < HP; ++k) {
            if (k < hidden) partials[k * columns + col] = du[k];
            if constexpr (SCALES<T>) all_finite &= is_finite(du[k]);
        }
        partials[(u64)hidden * columns + col] = db;
        if constexpr (SCALES<T>) all_finite &= is_finite(db);
    }

    // dx: a thread has column k of the tile, at four time steps.
    const u32 k = threadIdx.x % TILE_INPUTS;
    for (u32 first_k = 0; first_k < e; first_k += TILE_INPUTS) {
        // What lay there has been read; and the tile before.
        __syncthreads();
        for (u32 i = threadIdx.x; i < TILE_INPUTS * THREADS / 4; i += THREADS) {
            const u32 input = i / HP;  // HP fours a row
            const u32 four_gate = i % HP / (HP / 4);
            const u32 four = i % (HP / 4) * 4;
            float4 part = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (first_k + input < e) {
                part = load4(a.w + ((u64)(first_k + input) * GATES + four_gate) * hidden, four, hidden, hidden % 4 == 0);
            }
            *(float4*)(w_tile + input * TILE_PITCH<HP> + four_gate * HP + four) = part;
        }
        __syncthreads();
        for (u32 first_s = threadIdx.x / TILE_INPUTS * 4; first_s < t; first_s += THREADS / TILE_INPUTS * 4) {
            float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (u32 other = 0; other < GATES; ++other) {
#pragma unroll 4
                for (u32 four = 0; four < HP; four += 4) {
                    const float4 weight = shared4(w_tile + k * TILE_PITCH<HP> + other * HP + four);
#pragma unroll
                    for (u32 i = 0; i < 4; ++i) {
                        // Beyond the last time step: the last again, and nothing is written.
                        const u32 s = min(first_s + i, t - 1);
                        const float4 part = shared4(gates + s * GateRow<HP>::ROW + other * GateRow<HP>::GATE + four);
                        sum[i] = fmaf(part.x, weight.x, sum[i]);
                        sum[i] = fmaf(part.y, weight.y, sum[i]);
                        sum[i] = fmaf(part.z, weight.z, sum[i]);
                        sum[i] = fmaf(part.w, weight.w, sum[i]);
                    }
                }
            }
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                if (first_s + i < t && first_k + k < e) {
                    dx[((u64)(first_s + i) * rows + row) * e + first_k + k] = sum[i];
                    if constexpr (SCALES<T>) all_finite &= is_finite(sum[i]);
                }
            }
        }
    }
    if constexpr (SCALES<T>) {
        const bool warp_finite = __all_sync(ALL_LANES, all_finite);
        if (threadIdx.x % WARP == 0) finite[row * (THREADS / WARP) + threadIdx.x / WARP] = warp_finite;
    }
}

template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ void fused_forward(const u32* data, const u32* labels, const Weights<T>& a, float* probs, float* loss,
                                              float* hits, u32 rows, u32 t, u32 e, u32 hidden, u32 classes) {
    extern __shared__ __align__(16) float shared[];
    float* x = shared;
    float* h_rows = x + t * EP;
    float* logits = h_rows + 2 * HP;
    float* probs_own = logits + classes;
    float w_column[EP];
    float u_column[HP];
    const float bias = load_column<HP, EP>(a, e, hidden, w_column, u_column);
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        gather<HP, EP>(data + (u64)row * t, a.table, x, t, e);
        const float* h = walk<HP, EP, false, T>(w_column, u_column, bias, x, nullptr, h_rows, nullptr, t);
        classify<HP>(h, a, logits, hidden, classes);
        if (threadIdx.x < WARP) {
            const RowLoss found = softmax_row(logits, probs_own, classes, labels, labels ? labels[row] : 0);
            if (probs) {
                for (u32 c = threadIdx.x; c < classes; c += WARP) probs[(u64)row * classes + c] = probs_own[c];
            }
            if (labels && threadIdx.x == 0) {
                loss[row] = found.loss;
                hits[row] = found.hit;
            }
        }
        // Warp 0 reads the logits until walk's first barrier; classify writes them anew long after it.
    }
}

// The two kernels of these widths, named with this suffix. fused_step_…_f16 also takes the scale of the loss, and says of each warp of
// each row whether all gradients that it wrote are finite.
#define NO_PARAMETERS
#define NO_ARGUMENTS , nullptr, nullptr
#define SCALING_PARAMETERS , const Scaling *scaling, u32 *finite
#define SCALING_ARGUMENTS , scaling, finite
#define FUSED(hp, ep, suffix, T, parameters, arguments)                                                                         \
    extern "C" __global__ void __launch_bounds__(GATES* hp)                                                                     \
    fused_step_h##hp##_e##ep##suffix(const Step* steps, u32* cursor, const u32* data, const u32* labels, const u32* order,      \
                             const float* class_weights, const T* table, const T* w, const T* u, const float* b, const T* dense_w, \
                             const float* dense_b, float* dx, float* partials, T* h_last, float* dlogits, float* loss,          \
                             float* hits, u32 t, u32 e, u32 hidden, u32 classes, u64 stride, u32 shared_floats parameters) {    \
        fused_step<hp, ep, T>(steps, cursor, data, labels, order, class_weights, Weights<T>{table, w, u, b, dense_w, dense_b}, dx, partials, h_last, \
                           dlogits, loss, hits, t, e, hidden, classes, stride, shared_floats arguments);                        \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(GATES* hp)                                                                     \
    fused_forward_h##hp##_e##ep##suffix(const u32* data, const u32* labels, const T* table, const T* w, const T* u,             \
                                const float* b, const T* dense_w, const float* dense_b, float* probs, float* loss,              \
                                float* hits, u32 rows, u32 t, u32 e, u32 hidden, u32 classes) {                                 \
        fused_forward<hp, ep, T>(data, labels, Weights<T>{table, w, u, b, dense_w, dense_b}, probs, loss, hits, rows, t, e, hidden, classes); \
    }
