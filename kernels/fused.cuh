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

// x[s] of all time steps from the table; id_of(s, whether this thread is the first of those that ask for it).
template <u32 EP, typename T, typename F>
__device__ __forceinline__ void gather(const T* table, float* x, u32 t, u32 e, F id_of) {
    constexpr u32 QUADS = EP / 4;
    float4* fours = (float4*)x;
    for (u32 i = threadIdx.x; i < t * QUADS; i += blockDim.x) {
        const u64 id = id_of(i / QUADS, i % QUADS == 0);
        fours[i] = load4(table + id * e, i % QUADS * 4, e, e % 4 == 0);
    }
}

// N numbers of shared memory in registers.
template <u32 N>
struct Row {
    float4 fours[N / 4];

    __device__ __forceinline__ void load(const float* from) {
#pragma unroll
        for (u32 j = 0; j < N / 4; ++j) fours[j] = shared4(from + 4 * j);
    }
};

// sum + left · right, a chain in their order.
template <u32 N>
__device__ __forceinline__ float add_chain(const Row<N>& left, const Row<N>& right, float sum) {
#pragma unroll
    for (u32 j = 0; j < N / 4; ++j) {
        sum = fmaf(left.fours[j].x, right.fours[j].x, sum);
        sum = fmaf(left.fours[j].y, right.fours[j].y, sum);
        sum = fmaf(left.fours[j].z, right.fours[j].z, sum);
        sum = fmaf(left.fours[j].w, right.fours[j].w, sum);
    }
    return sum;
}

// b + x[s]·W of the thread's column: a chain in the order of k.
template <u32 EP>
__device__ __forceinline__ float project(const Row<EP>& x, const float (&w)[EP], float bias) {
    float sum = bias;
#pragma unroll
    for (u32 j = 0; j < EP / 4; ++j) {
        sum = fmaf(x.fours[j].x, w[4 * j + 0], sum);
        sum = fmaf(x.fours[j].y, w[4 * j + 1], sum);
        sum = fmaf(x.fours[j].z, w[4 * j + 2], sum);
        sum = fmaf(x.fours[j].w, w[4 * j + 3], sum);
    }
    return sum;
}

template <u32 EP>
__device__ __forceinline__ float project(const float* x, const float (&w)[EP], float bias) {
    Row<EP> row;
    row.load(x);
    return project(row, w, bias);
}

// Whose pre-activation is given + h·U.
template <u32 HP>
__device__ __forceinline__ float recur(const float* h, const float (&u)[HP], float given) {
    float chain[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    add_product((const float4*)h, u, chain);
    return given + ((chain[0] + chain[1]) + (chain[2] + chain[3]));
}

// h[T] of one row by 4·HP threads; h[s] lies in row s % 2 of h_rows, and is rounded to T.
template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ const float* walk(const float (&w)[EP], const float (&u)[HP], float bias, const float* x, float* h_rows, u32 t) {
    const u32 unit = threadIdx.x / GATES;
    const u32 gate = threadIdx.x % GATES;
    const Squash kind(gate == GATE_G);
    float c_now = 0.0f;
    if (gate == GATE_I) h_rows[unit] = 0.0f;
    // x has been written, too.
    __syncthreads();
    float next = project<EP>(x, w, bias);
    for (u32 s = 0; s < t; ++s) {
        const float given = next;
        const float pre = recur<HP>(h_rows + s % 2 * HP, u, given);
        next = project<EP>(x + min(s + 1, t - 1) * EP, w, bias);
        const GateValues v = exchange(squash(pre, kind).value());
        c_now = fmaf(v.f, c_now, v.i * v.g);
        const float h_now = as_stored<T>(squash(c_now, Squash(true)).product(v.o));
        if (gate == GATE_I) h_rows[(s + 1) % 2 * HP + unit] = h_now;
        __syncthreads();
    }
    return h_rows + t % 2 * HP;
}

// Column (gate, unit) of a matrix [n,4H], n <= N; what is padded is 0.
template <u32 N, typename T>
__device__ __forceinline__ void load_column(const T* matrix, u32 n, u32 hidden, u32 unit, u32 gate, float (&column)[N]) {
    const bool valid = unit < hidden;
#pragma unroll
    for (u32 k = 0; k < N; ++k) column[k] = valid && k < n ? widen(matrix[(k * GATES + gate) * hidden + unit]) : 0.0f;
}

// A class' column of dense W and its bias, a lane's share.
template <u32 HP>
struct ClassColumn {
    float w[HP / WARP];
    float b;

    template <typename T>
    __device__ __forceinline__ ClassColumn(const Weights<T>& a, u32 hidden, u32 classes, u32 col) {
#pragma unroll
        for (u32 j = 0; j < HP / WARP; ++j) {
            const u32 k = j * WARP + threadIdx.x % WARP;
            w[j] = k < hidden && col < classes ? widen(a.dense_w[(u64)k * classes + col]) : 0.0f;
        }
        b = col < classes ? a.dense_b[col] : 0.0f;
    }
};

// The row's logits: as dense_forward, whose sums have the same order: what is padded adds 0. A warp a class, of `warps`, of which this is
// `warp`; first: its first class.
template <u32 HP, typename T>
__device__ __forceinline__ void classify(const float* h, const Weights<T>& a, float* logits, u32 hidden, u32 classes, u32 warp, u32 warps,
                                         ClassColumn<HP> column) {
    const u32 lane = threadIdx.x % WARP;
    for (u32 col = warp; col < classes; col += warps) {
        if (col > warp) column = ClassColumn<HP>(a, hidden, classes, col);
        float sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < HP / WARP; ++j) sum = fmaf(h[j * WARP + lane], column.w[j], sum);
        sum = warp_sum(sum);
        if (lane == 0) logits[col] = column.b + sum;
    }
}

// All `COUNT` threads of the block. Its halves meet here at different places in the code, which __syncthreads must not.
template <u32 COUNT>
__device__ __forceinline__ void meet() {
    __barrier_sync_count(0, COUNT);
}

// Shared memory of fused_step, in order. What a time step's backward pass needs takes the place of what its forward pass has used.
template <u32 HP, u32 EP>
struct Kept {
    float* gates;   // [t] GateRow: pre without h·U; then gate_slope; then dpre
    float* h_rows;  // [t+1, HP]
    float* states;  // [t, HP]: state_slope
    float* forget;  // [t, HP]: the gate f
    float* x;       // [t, EP]
    float* w_tile;  // [TILE_INPUTS, TILE_PITCH]
    u32* places;    // [t]: where dx[s] goes
    float* logits;
    float* dlogits;

    __device__ __forceinline__ Kept(float* shared, u32 t, u32 classes)
        : gates(shared), h_rows(gates + t * GateRow<HP>::ROW), states(h_rows + (t + 1) * HP), forget(states + t * HP),
          x(forget + t * HP), w_tile(x + t * EP), places((u32*)(w_tile + TILE_INPUTS * TILE_PITCH<HP>)), logits((float*)(places + t)),
          dlogits(logits + classes) {}
};

// Columns of W from first_k on into w_tile, by `threads` threads, of which this is `thread`.
template <u32 HP, typename T>
__device__ __forceinline__ void load_tile(const T* w, float* w_tile, u32 first_k, u32 e, u32 hidden, u32 thread, u32 threads) {
    for (u32 i = thread; i < TILE_INPUTS * HP; i += threads) {
        const u32 input = i / HP;  // HP fours a row
        const u32 gate = i % HP / (HP / 4);
        const u32 four = i % (HP / 4) * 4;
        float4 part = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first_k + input < e) part = load4(w + ((u64)(first_k + input) * GATES + gate) * hidden, four, hidden, hidden % 4 == 0);
        *(float4*)(w_tile + input * TILE_PITCH<HP> + gate * HP + four) = part;
    }
}

// Numbers [four, four + 4) of a row of n; one store where n is a multiple of 4. (The store4 of common.cuh that decides between one and
// four is made four by the compiler here.)
__device__ __forceinline__ void store_four(float* row, u32 four, u32 n, float4 value) {
    if (n % 4 == 0) {
        if (four < n) store4(row + four, value.x, value.y, value.z, value.w);
    } else {
        store4(row, four, n, false, value);
    }
}

// The four columns and N rows of a sum of outer products that a helper has in registers.
template <u32 N>
struct Tile {
    float sum[N][4];

    __device__ __forceinline__ void add(const Row<N>& left, float4 right) {
#pragma unroll
        for (u32 j = 0; j < N / 4; ++j) {
            const float4 part = left.fours[j];
            const float parts[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                float* row = sum[4 * j + i];
                row[0] = fmaf(parts[i], right.x, row[0]);
                row[1] = fmaf(parts[i], right.y, row[1]);
                row[2] = fmaf(parts[i], right.z, row[2]);
                row[3] = fmaf(parts[i], right.w, row[3]);
            }
        }
    }

    // Rows first_row … of n, columns four … of one gate's `hidden`. Says whether all of them are finite; what is padded is 0, or like
    // the rest where h or x is not finite.
    __device__ __forceinline__ bool store(float* to, u32 first_row, u32 n, u32 four, u32 hidden) const {
        bool finite = true;
#pragma unroll
        for (u32 k = 0; k < N; ++k) {
            if (first_row + k >= n) continue;
            store_four(to + (u64)(first_row + k) * GATES * hidden, four, hidden,
                       make_float4(sum[k][0], sum[k][1], sum[k][2], sum[k][3]));
#pragma unroll
            for (u32 i = 0; i < 4; ++i) finite &= is_finite(sum[k][i]);
        }
        return finite;
    }
};

// Forward and backward of a row of the step, whose x and places are on their way into `kept`; all threads of the block.
template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ void row_step(const Kept<HP, EP>& kept, const Step& step, u32 row, const u32* labels, const u32* order,
                                         const float* class_weights, const Weights<T>& a, float* dx, float* partials, T* h_last,
                                         float* dlogits, float* loss, float* hits, u32 t, u32 e, u32 hidden, u32 classes, u64 stride,
                                         const Scaling* scaling, u32* finite) {
    constexpr u32 HALF = GATES * HP;
    constexpr u32 THREADS = 2 * HALF;
    // The same in all lanes of a warp, and the compiler is to know it.
    const bool helps = __shfl_sync(ALL_LANES, threadIdx.x / HALF, 0);
    const u32 thread = threadIdx.x % HALF;
    const u32 lane = threadIdx.x % WARP;
    const u32 rows = step.rows;
    [[maybe_unused]] bool all_finite = true;
    partials += row * stride;

    if (helps) {
        // What the loss will need, before anybody waits for it.
        const u32 label = labels[order[step.batch_start + row]];
        const float weight = class_weights ? class_weights[label] : 1.0f;
        [[maybe_unused]] float scale = 1.0f;
        if constexpr (SCALES<T>) scale = scaling->scale;
        const ClassColumn<HP> first(a, hidden, classes, thread / WARP);
        // Forward: the part of pre that needs no h, two time steps ahead.
        {
            const u32 unit = thread / GATES;
            const u32 gate = thread % GATES;
            float* pre = kept.gates + gate * GateRow<HP>::GATE + unit;
            float w[EP];
            load_column(a.w, e, hidden, unit, gate, w);
            const float bias = unit < hidden ? a.b[gate * hidden + unit] : 0.0f;
            load_tile<HP>(a.w, kept.w_tile, 0, e, hidden, thread, HALF);
            if (thread < HP) kept.h_rows[thread] = 0.0f;
            meet<THREADS>();
            pre[0] = project<EP>(kept.x, w, bias);
            if (t > 1) pre[GateRow<HP>::ROW] = project<EP>(kept.x + EP, w, bias);
            // Shared memory is asked for before a barrier, not when the walkers do it.
            Row<EP> x;
            x.load(kept.x + min(2, t - 1) * EP);
            meet<THREADS>();
            for (u32 s = 2; s <= t + 1; ++s) {
                if (s < t) pre[s * GateRow<HP>::ROW] = project(x, w, bias);
                x.load(kept.x + min(s + 1, t - 1) * EP);
                meet<THREADS>();
            }
        }
        // The dense layer and the loss.
        const float* h = kept.h_rows + t * HP;
        classify<HP>(h, a, kept.logits, hidden, classes, thread / WARP, HALF / WARP, first);
        meet<THREADS>();
        Softmax softmax = {};
        if (thread < WARP) {
            // Each lane's own classes: the probabilities, then the gradient in their place.
            softmax = softmax_row(kept.logits, kept.dlogits, classes);
            for (u32 c = lane; c < classes; c += WARP) {
                const float onehot = label == c ? 1.0f : 0.0f;
                float gradient = (kept.dlogits[c] - onehot) / (float)rows * weight;
                if constexpr (SCALES<T>) {
                    gradient *= scale;
                    all_finite &= is_finite(gradient);
                }
                kept.dlogits[c] = gradient;
                dlogits[(u64)row * classes + c] = gradient;
            }
        }
        meet<THREADS>();
        if (thread == 0) {
            const RowLoss found = row_loss(softmax, kept.logits, label);
            loss[row] = found.loss * weight;
            hits[row] = found.hit;
        }
        if (thread < hidden) h_last[(u64)row * hidden + thread] = narrow<T>(h[thread]);
        // Backward: a thread has four columns, a quarter of the rows of U and of W.
        constexpr u32 UNITS = HP / 4;
        constexpr u32 INPUTS = EP / 4;
        const u32 quarter = thread / WARP % 4;
        const u32 group = thread / (4 * WARP) * WARP + lane;
        const u32 gate = group / (HP / 4);
        const u32 four = group % (HP / 4) * 4;
        Tile<UNITS> du = {};
        Tile<INPUTS> dw = {};
        float4 db = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        // What a time step's sums are made of. With room in registers it is asked for in one time step and summed in the next, when
        // the walkers ask for theirs. At first nothing is summed.
        constexpr bool LATER = HP == 32;
        Row<UNITS> h_part = {};
        Row<INPUTS> x_part = {};
        float4 dpre = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const auto sum = [&]() {
            du.add(h_part, dpre);
            dw.add(x_part, dpre);
            db = make_float4(db.x + dpre.x, db.y + dpre.y, db.z + dpre.z, db.w + dpre.w);
        };
        for (u32 s = t; s-- > 0;) {
            meet<THREADS>();
            if constexpr (LATER) sum();
            dpre = shared4(kept.gates + s * GateRow<HP>::ROW + gate * GateRow<HP>::GATE + four);
            h_part.load(kept.h_rows + s * HP + quarter * UNITS);
            x_part.load(kept.x + s * EP + quarter * INPUTS);
            if constexpr (!LATER) sum();
        }
        if constexpr (LATER) sum();
        partials += gate * hidden;
        all_finite &= dw.store(partials, quarter * INPUTS, e, four, hidden);
        all_finite &= du.store(partials + (u64)e * GATES * hidden, quarter * UNITS, hidden, four, hidden);
        if (quarter == 0) {
            store_four(partials + (u64)(e + hidden) * GATES * hidden, four, hidden, db);
            all_finite &= is_finite(db.x) && is_finite(db.y) && is_finite(db.z) && is_finite(db.w);
        }
    } else {
        const u32 unit = thread / GATES;
        const u32 gate = thread % GATES;
        float* gates = kept.gates + gate * GateRow<HP>::GATE + unit;
        // What dh[T] needs of dense W, of the first classes.
        constexpr u32 AHEAD = 2;
        float dense_w[AHEAD];
#pragma unroll
        for (u32 c = 0; c < AHEAD; ++c) {
            dense_w[c] = unit < hidden && c < classes ? widen(a.dense_w[(u64)unit * classes + c]) : 0.0f;
        }
        {
            float u[HP];
            load_column(a.u, hidden, hidden, unit, gate, u);
            float c_now = 0.0f;
            meet<THREADS>();
            meet<THREADS>();
            // A step's part of the backward pass is written in the next one, where there is time: the gate's slope in its place of a row
            // of gates, f and the state's slope by the lanes of f and o; the one of i has written h.
            GateValues v = {};
            float own = 0.0f;
            float c_prev = 0.0f;
            float tanh_c = 0.0f;
            const Squash kind(gate == GATE_G);
            GateBits bits(gate);
            // Of 64 units every register is taken.
            if constexpr (HP == 32) bits.hold();
            const bool has_h = gate == GATE_I;
            const bool has_f = gate == GATE_F;
            const bool has_state = has_f || gate == GATE_O;
            float* mine = (has_h ? kept.h_rows : has_f ? kept.forget : kept.states) + unit;
            const auto keep = [&](bool there) {
                const GateValues stored = {as_stored<T>(v.i), as_stored<T>(v.f), as_stored<T>(v.g), as_stored<T>(v.o)};
                store_if(there, gates - GateRow<HP>::ROW, gate_slope(gate, bits, as_stored<T>(own), stored, c_prev, tanh_c));
                store_if(there && has_state, mine - HP, has_f ? stored.f : state_slope(stored.o, tanh_c));
            };
            const float* h_at = kept.h_rows;
            float given = shared1(gates);
            bool there = false;
            for (u32 left = t; left > 0; --left) {
                const float pre = recur<HP>(h_at, u, given);
                h_at += HP;
                const float own_now = squash(pre, kind).value();
                const GateValues now = exchange(own_now);
                const float c_next = fmaf(now.f, c_now, now.i * now.g);
                const Squashed tanh_next = squash(c_next, Squash(true));
                keep(there);
                there = true;
                gates += GateRow<HP>::ROW;
                mine += HP;
                // The next time step's, before the barrier.
                if (left > 1) given = shared1(gates);
                own = own_now;
                v = now;
                c_prev = c_now;
                c_now = c_next;
                tanh_c = tanh_next.value();
                if (has_h) *mine = as_stored<T>(tanh_next.product(v.o));
                meet<THREADS>();
            }
            keep(true);
            gates -= t * GateRow<HP>::ROW;
        }
        float u[HP];
        load_slice<HP>(a.u, unit, hidden, gate, u);
        // The helpers' logits, then their gradients.
        meet<THREADS>();
        meet<THREADS>();
        float dh_now = 0.0f;
        if (unit < hidden) {
#pragma unroll
            for (u32 c = 0; c < AHEAD; ++c) {
                if (c < classes) dh_now = fmaf(kept.dlogits[c], dense_w[c], dh_now);
            }
            for (u32 c = AHEAD; c < classes; ++c) dh_now = fmaf(kept.dlogits[c], widen(a.dense_w[(u64)unit * classes + c]), dh_now);
        }
        float dc_now = 0.0f;
        float* own_at = gates + (t - 1) * GateRow<HP>::ROW;
        const float* state_at = kept.states + (t - 1) * HP + unit;
        const float* forget_at = kept.forget + (t - 1) * HP + unit;
        const float4* dpre_at = (const float4*)(kept.gates + (t - 1) * GateRow<HP>::ROW) + gate;
        float slope = shared1(own_at);
        float state = shared1(state_at);
        float f = shared1(forget_at);
        for (u32 left = t;;) {
            *own_at = as_stored<T>(gate_backward(gate, slope, state, f, dh_now, dc_now));
            meet<THREADS>();
            if (--left == 0) break;
            float chain[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            add_slice<HP>(dpre_at, 0, u, chain);
            own_at -= GateRow<HP>::ROW;
            state_at -= HP;
            forget_at -= HP;
            dpre_at -= GateRow<HP>::ROW / 4;
            slope = shared1(own_at);
            state = shared1(state_at);
            f = shared1(forget_at);
            dh_now = sum_slices(chain);
        }
    }

    // dx, 16 inputs at a time: a thread has an input, and time step after time step; two side by side where there are so few warps that
    // a multiprocessor waits for their chains.
    constexpr u32 SIDE = HP == 32 ? 2 : 1;
    constexpr u32 APART = THREADS / TILE_INPUTS;
    for (u32 first_k = 0; first_k < e; first_k += TILE_INPUTS) {
        if (first_k > 0) {
            // The tile before has been read.
            meet<THREADS>();
            load_tile<HP>(a.w, kept.w_tile, first_k, e, hidden, threadIdx.x, THREADS);
            meet<THREADS>();
        }
        const u32 k = threadIdx.x % TILE_INPUTS;
        for (u32 s = threadIdx.x / TILE_INPUTS; s < t; s += SIDE * APART) {
            u32 at[SIDE];
            float sum[SIDE] = {};
            // Where there is no second one, the first again.
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) at[i] = s + i * APART < t ? s + i * APART : s;
#pragma unroll
            for (u32 part = 0; part < GATES * HP; part += WARP) {
                const u32 place = part / HP * GateRow<HP>::GATE + part % HP;
                Row<WARP> w;
                w.load(kept.w_tile + k * TILE_PITCH<HP> + part);
#pragma unroll
                for (u32 i = 0; i < SIDE; ++i) {
                    Row<WARP> dpre;
                    dpre.load(kept.gates + at[i] * GateRow<HP>::ROW + place);
                    sum[i] = add_chain(dpre, w, sum[i]);
                }
            }
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) {
                if (first_k + k >= e || s + i * APART >= t) continue;
                dx[(u64)kept.places[at[i]] * e + first_k + k] = sum[i];
                if constexpr (SCALES<T>) all_finite &= is_finite(sum[i]);
            }
        }
    }
    if constexpr (SCALES<T>) {
        const bool warp_finite = __all_sync(ALL_LANES, all_finite);
        if (lane == 0) finite[row * (THREADS / WARP) + threadIdx.x / WARP] = warp_finite;
    }
}

template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ void fused_step(const Step* steps, u32* cursor, const uint2* tokens, const u32* labels, const u32* order,
                                           const float* class_weights, const Weights<T>& a, float* dx, float* partials, T* h_last,
                                           float* dlogits, float* loss, float* hits, u32 t, u32 e, u32 hidden, u32 classes, u64 stride,
                                           u64 capacity, const Scaling* scaling, u32* finite) {
    extern __shared__ __align__(16) float shared[];
    const Kept<HP, EP> kept(shared, t, classes);
    const u32 at = cursor[CURSOR_STEP];
    const Step step = steps[at];
    if (blockIdx.x == 0 && threadIdx.x == 0) cursor[CURSOR_LAST] = at;
    const u32 row = blockIdx.x;
    if (row >= step.rows) return;
    tokens += at * capacity + row * t;
    gather<EP>(a.table, kept.x, t, e, [&](u32 s, bool first) {
        const uint2 token = tokens[s];
        if (first) kept.places[s] = token.y;
        return token.x;
    });
    row_step<HP, EP, T>(kept, step, row, labels, order, class_weights, a, dx, partials, h_last, dlogits, loss, hits, t, e, hidden, classes,
                        stride, scaling, finite);
}

template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ void fused_forward(const u32* data, const u32* labels, const Weights<T>& a, float* probs, float* loss,
                                              float* hits, u32 rows, u32 t, u32 e, u32 hidden, u32 classes) {
    extern __shared__ __align__(16) float shared[];
    float* x = shared;
    float* h_rows = x + t * EP;
    float* logits = h_rows + 2 * HP;
    float* probs_own = logits + classes;
    const u32 unit = threadIdx.x / GATES;
    const u32 gate = threadIdx.x % GATES;
    float w[EP];
    float u[HP];
    load_column(a.w, e, hidden, unit, gate, w);
    load_column(a.u, hidden, hidden, unit, gate, u);
    const float bias = unit < hidden ? a.b[gate * hidden + unit] : 0.0f;
    const ClassColumn<HP> first(a, hidden, classes, threadIdx.x / WARP);
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        gather<EP>(a.table, x, t, e, [&](u32 s, bool) { return data[(u64)row * t + s]; });
        const float* h = walk<HP, EP, T>(w, u, bias, x, h_rows, t);
        classify<HP>(h, a, logits, hidden, classes, threadIdx.x / WARP, GATES * HP / WARP, first);
        __syncthreads();
        if (threadIdx.x < WARP) {
            const Softmax softmax = softmax_row(logits, probs_own, classes);
            if (probs) {
                for (u32 c = threadIdx.x; c < classes; c += WARP) probs[(u64)row * classes + c] = probs_own[c];
            }
            if (labels && threadIdx.x == 0) {
                const RowLoss found = row_loss(softmax, logits, labels[row]);
                loss[row] = found.loss;
                hits[row] = found.hit;
            }
        }
        // Warp 0 reads the logits until walk's first barrier; classify writes them anew long after it.
    }
}

// Blocks of fused_forward that a multiprocessor shall have room for: so many that it always has an instruction to issue. With more
// the compiler keeps fewer registers, and asks for h piece by piece.
template <u32 HP, u32 EP>
constexpr u32 RESIDENT = HP == 32 ? (EP == 16 ? 5 : EP == 32 ? 4 : 3) : EP == 16 ? 2 : 1;

// The two kernels of these widths, named with this suffix. fused_step_…_f16 also takes the scale of the loss, and says of each warp of
// each row whether all gradients that it wrote are finite.
#define NO_PARAMETERS
#define NO_ARGUMENTS , nullptr, nullptr
#define SCALING_PARAMETERS , const Scaling *scaling, u32 *finite
#define SCALING_ARGUMENTS , scaling, finite
#define FUSED(hp, ep, suffix, T, parameters, arguments)                                                                         \
    extern "C" __global__ void __launch_bounds__(2 * GATES * hp, 1)                                                             \
    fused_step_h##hp##_e##ep##suffix(const Step* steps, u32* cursor, const uint2* tokens, const u32* labels, const u32* order,  \
                             const float* class_weights, const T* table, const T* w, const T* u, const float* b,                \
                             const T* dense_w, const float* dense_b, float* dx, float* partials, T* h_last, float* dlogits,     \
                             float* loss, float* hits, u32 t, u32 e, u32 hidden, u32 classes, u64 stride,                       \
                             u64 capacity parameters) {                                                                         \
        fused_step<hp, ep, T>(steps, cursor, tokens, labels, order, class_weights, Weights<T>{table, w, u, b, dense_w, dense_b},\
                              dx, partials, h_last, dlogits, loss, hits, t, e, hidden, classes, stride, capacity arguments);    \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(GATES* hp, RESIDENT<hp, ep>)                                                   \
    fused_forward_h##hp##_e##ep##suffix(const u32* data, const u32* labels, const T* table, const T* w, const T* u,             \
                                const float* b, const T* dense_w, const float* dense_b, float* probs, float* loss,              \
                                float* hits, u32 rows, u32 t, u32 e, u32 hidden, u32 classes) {                                 \
        fused_forward<hp, ep, T>(data, labels, Weights<T>{table, w, u, b, dense_w, dense_b}, probs, loss, hits, rows, t, e,     \
                                 hidden, classes);                                                                              \
    }
