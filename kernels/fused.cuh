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

// h[T] of one row by 4·HP threads; h[s] lies in row s % 2 of h_rows (place_of), and is rounded to T.
template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ const float* walk(const float (&w)[EP], const float (&u)[HP], float bias, const float* x, float* h_rows, u32 t) {
    const u32 gate = gate_of(threadIdx.x);
    const Squash kind(gate == GATE_G);
    // Where h is read and written, by turns: known before the barrier.
    const float* from = h_rows + 4 * half_of(gate);
    float* to = h_rows + place_of(unit_of(threadIdx.x));
    int apart = HP;
    float c_now = 0.0f;
    if (gate == GATE_I) *to = 0.0f;
    to += apart;
    // x has been written, too.
    __syncthreads();
    float next = project<EP>(x, w, bias);
    for (u32 s = 0; s < t; ++s) {
        const float given = next;
        const float pre = recur<HP>(from, u, given);
        next = project<EP>(x + min(s + 1, t - 1) * EP, w, bias);
        const GateValues v = exchange(squash(pre, kind).value());
        c_now = fmaf(v.f, c_now, v.i * v.g);
        const float h_now = as_stored<T>(squash(c_now, Squash(true)).product(v.o));
        store_if(gate == GATE_I, to, h_now);
        from += apart;
        to -= apart;
        apart = -apart;
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
        for (u32 j = 0; j < HP / WARP; ++j) sum = fmaf(h[j * WARP + place_of(lane)], column.w[j], sum);
        sum = warp_sum(sum);
        if (lane == 0) logits[col] = column.b + sum;
    }
}

// Of two classes, every warp of fused_step takes its row through the dense layer and the loss itself: nothing is handed from one to
// another between h[T] and dh[T], where everybody would wait for it.
constexpr u32 TWO = 2;

// What a row's loss needs besides h[T], in shared memory.
template <u32 HP>
struct Head {
    float w[TWO][HP];  // of two classes: dense W's columns; what is padded is 0
    float b[TWO];
    u32 label;
    float rows;           // of the step
    float weight, scale;  // of the row's class; of the loss, of f16 alone

    static constexpr u32 FLOATS = TWO * (HP + 1) + 4;
};

// A row of two classes from h[T] to its loss, by each warp that needs it.
struct TwoClasses {
    u32 label;
    float weight;
    float logits[TWO];
    Softmax softmax;
    float gradient;  // by the logit of class lane % 2

    // All sums in the order of dense_forward and of softmax_row.
    template <u32 HP>
    __device__ __forceinline__ TwoClasses(const float* h, const Head<HP>& head) {
        const u32 lane = threadIdx.x % WARP;
        weight = shared1(&head.weight);
        const float rows = shared1(&head.rows);
        label = __float_as_uint(shared1(&head.label));
#pragma unroll
        for (u32 c = 0; c < TWO; ++c) {
            logits[c] = 0.0f;
#pragma unroll
            for (u32 j = 0; j < HP / WARP; ++j) logits[c] = fmaf(h[j * WARP + place_of(lane)], head.w[c][j * WARP + lane], logits[c]);
        }
        // Of both at once.
#pragma unroll
        for (u32 step = WARP / 2; step > 0; step /= 2) {
#pragma unroll
            for (u32 c = 0; c < TWO; ++c) logits[c] += __shfl_xor_sync(ALL_LANES, logits[c], step);
        }
#pragma unroll
        for (u32 c = 0; c < TWO; ++c) logits[c] = head.b[c] + logits[c];
        softmax.index = logits[1] > logits[0];
        softmax.largest = softmax.index ? logits[1] : logits[0];
        const float e[TWO] = {strict_exp(logits[0] - softmax.largest), strict_exp(logits[1] - softmax.largest)};
        softmax.sum = e[0] + e[1];
        const u32 own = lane % TWO;
        const float onehot = label == own ? 1.0f : 0.0f;
        gradient = ((own ? e[1] : e[0]) / softmax.sum - onehot) / rows * weight;
    }
};

// Of fused_step's threads one half walks through time, the other helps.
template <u32 HP>
constexpr u32 HALF = GATES * HP;

// All `COUNT` threads of the block. Its halves meet here at different places in the code, which __syncthreads must not.
template <u32 COUNT>
__device__ __forceinline__ void meet() {
    __barrier_sync_count(0, COUNT);
}

// Shared memory of fused_step, in order. What a time step's backward pass needs takes the place of what its forward pass has used.
template <u32 HP, u32 EP>
struct Kept {
    float* gates;   // [t] GateRow: pre without h·U; then gate_slope; then dpre
    float* h_rows;  // [t+1, HP], each by place_of
    float* states;  // [t, HP]: state_slope
    float* forget;  // [t, HP]: the gate f, in other banks than the states, which a warp writes along with it
    float* x;       // [t, EP]
    float* w_tile;  // [TILE_INPUTS, TILE_PITCH]
    u32* places;    // [t]: where dx[s] goes
    Head<HP>* head;
    float* logits;
    float* dlogits;

    __device__ __forceinline__ Kept(float* shared, u32 t, u32 classes)
        : gates(shared), h_rows(gates + t * GateRow<HP>::ROW), states(h_rows + (t + 1) * HP), forget(states + t * HP + WARP_UNITS),
          x(forget + t * HP), w_tile(x + t * EP), places((u32*)(w_tile + TILE_INPUTS * TILE_PITCH<HP>)), head((Head<HP>*)(places + t)),
          logits((float*)head + Head<HP>::FLOATS), dlogits(logits + classes) {}
};

// A thread's share of 16 rows of W, of which `threads` make w_tile.
template <u32 HP, u32 THREADS>
struct TileShare {
    static constexpr u32 N = TILE_INPUTS * HP / THREADS;
    float4 fours[N];

    // The input and the place in its row of w_tile of number n, by thread `thread`.
    static __device__ __forceinline__ u32 input(u32 n, u32 thread) { return (n * THREADS + thread) / HP; }
    static __device__ __forceinline__ u32 gate(u32 n, u32 thread) { return (n * THREADS + thread) % HP / (HP / 4); }
    static __device__ __forceinline__ u32 four(u32 n, u32 thread) { return (n * THREADS + thread) % (HP / 4) * 4; }

    // Of the rows from first_k on.
    template <typename T>
    __device__ __forceinline__ void load(const T* w, u32 first_k, u32 e, u32 hidden, u32 thread) {
#pragma unroll
        for (u32 n = 0; n < N; ++n) {
            const u32 k = first_k + input(n, thread);
            fours[n] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (k < e) fours[n] = load4(w + ((u64)k * GATES + gate(n, thread)) * hidden, four(n, thread), hidden, hidden % 4 == 0);
        }
    }

    __device__ __forceinline__ void store(float* w_tile, u32 thread) const {
#pragma unroll
        for (u32 n = 0; n < N; ++n) {
            store_shared4(w_tile + input(n, thread) * TILE_PITCH<HP> + gate(n, thread) * HP + four(n, thread), fours[n]);
        }
    }
};

// What comes with a row's ids.
struct Arrived {
    u32 label, rows;
};

// A helper's share of what is needed after the forward pass.
template <u32 HP>
struct HelperShare {
    TileShare<HP, HALF<HP>> tile;
    // The first two classes: of the first threads, a unit each; and of the first one.
    float w[TWO], b[TWO], weights[TWO];
    float scale;

    template <typename T>
    __device__ __forceinline__ void load(const Weights<T>& a, const float* class_weights, const Scaling* scaling, u32 e, u32 hidden,
                                         u32 classes, u32 thread) {
        tile.load(a.w, 0, e, hidden, thread);
#pragma unroll
        for (u32 c = 0; c < TWO; ++c) {
            w[c] = thread < hidden ? widen(a.dense_w[(u64)thread * classes + c]) : 0.0f;
            b[c] = a.dense_b[c];
            weights[c] = class_weights ? class_weights[c] : 1.0f;
        }
        scale = 1.0f;
        if constexpr (SCALES<T>) scale = scaling->scale;
    }

    __device__ __forceinline__ void store(float* w_tile, Head<HP>& head, const Arrived& row, const float* class_weights,
                                          u32 thread) const {
        tile.store(w_tile, thread);
        if (thread < HP) {
#pragma unroll
            for (u32 c = 0; c < TWO; ++c) head.w[c][thread] = w[c];
        }
        if (thread > 0) return;
#pragma unroll
        for (u32 c = 0; c < TWO; ++c) head.b[c] = b[c];
        head.label = row.label;
        head.rows = (float)row.rows;
        head.weight = row.label == 0 ? weights[0] : row.label == 1 || !class_weights ? weights[1] : class_weights[row.label];
        head.scale = scale;
    }
};

// Numbers [four, four + 4) of a row of n. FOURS: n is a multiple of 4, and this one store. (Of a store4 that decides where it stands the
// compiler makes four stores here.)
template <bool FOURS>
__device__ __forceinline__ void store_four(float* row, u32 four, u32 n, float4 value) {
    if constexpr (FOURS) {
        if (four < n) store4(row + four, value.x, value.y, value.z, value.w);
    } else {
        store4(row, four, n, false, value);
    }
}

// A tile of a matrix [n, 4·hidden]. PLACED: its rows are in the order of place_of.
template <bool FOURS, bool PLACED, u32 HP, u32 N>
__device__ __forceinline__ void store_tile(float* to, const Tile<N>& tile, const Columns<HP>& own, u32 n, u32 hidden) {
    const u32 first = PLACED ? place_of(own.first_row()) : own.first_row();
    to += ((u64)first * GATES + own.gate) * hidden;
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        const u32 further = PLACED ? place_of(own.further(k)) : own.further(k);
        if (first + further < n) store_four<FOURS>(to + (u64)further * GATES * hidden, own.four, hidden, tile.four(k));
    }
}

// The gradients of W, U and b.
template <bool FOURS, u32 HP, u32 INPUTS, u32 UNITS>
__device__ __forceinline__ void store_sums(float* to, const Tile<INPUTS>& dw, const Tile<UNITS>& du, float4 db, const Columns<HP>& own, u32 e,
                                           u32 hidden) {
    store_tile<FOURS, false>(to, dw, own, e, hidden);
    store_tile<FOURS, true>(to + (u64)e * GATES * hidden, du, own, hidden, hidden);
    if (own.quarter == 0) store_four<FOURS>(to + ((u64)(e + hidden) * GATES + own.gate) * hidden, own.four, hidden, db);
}

// Forward and backward of a row of the step, if it has that many; all threads of the block. arrive() brings its x and places into `kept`
// and returns its label and how many rows the step has.
template <u32 HP, u32 EP, typename T, typename F>
__device__ __forceinline__ void row_step(const Kept<HP, EP>& kept, u32 row, F arrive, const float* class_weights, const Weights<T>& a,
                                         float* dx, float* partials, T* h_last, float* dlogits, float* loss, float* hits, u32 t, u32 e,
                                         u32 hidden, u32 classes, u64 stride, const Scaling* scaling, u32* finite) {
    constexpr u32 THREADS = 2 * HALF<HP>;
    // The same in all lanes of a warp, and the compiler is to know it.
    const bool helps = __shfl_sync(ALL_LANES, threadIdx.x / HALF<HP>, 0);
    const u32 thread = threadIdx.x % HALF<HP>;
    const u32 lane = threadIdx.x % WARP;
    const bool two = classes == TWO;
    // Registers for what is not needed before the walk through time is.
    constexpr bool HAS_ROOM = HP == 32;
    [[maybe_unused]] bool all_finite = true;

    if (helps) {
        // Parameters are asked for before anybody waits for ids: the thread's column of W, and what is needed later.
        float w[EP];
        const u32 unit = unit_of(thread);
        const u32 gate = gate_of(thread);
        load_column(a.w, e, hidden, unit, gate, w);
        const float bias = unit < hidden ? a.b[gate * hidden + unit] : 0.0f;
        HelperShare<HP> share;
        if constexpr (HAS_ROOM) share.load(a, class_weights, scaling, e, hidden, classes, thread);
        const Arrived arrived = arrive();
        if (row >= arrived.rows) return;
        // Forward: the part of pre that needs no h, two time steps ahead.
        float* pre = kept.gates + gate * GateRow<HP>::GATE + unit;
        if (thread < HP) kept.h_rows[thread] = 0.0f;
        meet<THREADS>();
        pre[0] = project<EP>(kept.x, w, bias);
        if (t > 1) pre[GateRow<HP>::ROW] = project<EP>(kept.x + EP, w, bias);
        meet<THREADS>();
        // The walkers are on their way; what is needed later.
        if constexpr (!HAS_ROOM) share.load(a, class_weights, scaling, e, hidden, classes, thread);
        share.store(kept.w_tile, *kept.head, arrived, class_weights, thread);
        const ClassColumn<HP> first(a, hidden, classes, two ? classes : thread / WARP);
        {
            // Shared memory is asked for before a barrier, not when the walkers do it.
            Row<EP> x;
            x.load(kept.x + min(2, t - 1) * EP);
            for (u32 s = 2; s <= t + 1; ++s) {
                if (s < t) pre[s * GateRow<HP>::ROW] = project(x, w, bias);
                x.load(kept.x + min(s + 1, t - 1) * EP);
                meet<THREADS>();
            }
        }
        // The dense layer and its gradient.
        const float* h = kept.h_rows + t * HP;
        Softmax softmax = {};
        u32 label = 0;
        float label_logit = 0.0f;
        float weight = 0.0f;
        if (two) {
            if (thread < WARP) {
                TwoClasses own(h, *kept.head);
                if constexpr (SCALES<T>) {
                    own.gradient *= kept.head->scale;
                    all_finite &= is_finite(own.gradient);
                }
                if (lane < TWO) dlogits[row * TWO + lane] = own.gradient;
                softmax = own.softmax;
                label = own.label;
                label_logit = label == 0 ? own.logits[0] : own.logits[1];
                weight = own.weight;
            }
        } else {
            label = kept.head->label;
            weight = kept.head->weight;
            const float rows = kept.head->rows;
            classify<HP>(h, a, kept.logits, hidden, classes, thread / WARP, HALF<HP> / WARP, first);
            meet<THREADS>();
            if (thread < WARP) {
                // Each lane's own classes: the probabilities, then the gradient in their place.
                softmax = softmax_row(kept.logits, kept.dlogits, classes);
                for (u32 c = lane; c < classes; c += WARP) {
                    const float onehot = label == c ? 1.0f : 0.0f;
                    float gradient = (kept.dlogits[c] - onehot) / rows * weight;
                    if constexpr (SCALES<T>) {
                        gradient *= kept.head->scale;
                        all_finite &= is_finite(gradient);
                    }
                    kept.dlogits[c] = gradient;
                    dlogits[(u64)row * classes + c] = gradient;
                }
            }
            meet<THREADS>();
            label_logit = kept.logits[label];
        }
        if (thread < hidden) h_last[(u64)row * hidden + thread] = narrow<T>(h[place_of(thread)]);
        // Backward.
        constexpr u32 UNITS = HP / 4;
        constexpr u32 INPUTS = EP / 4;
        const Columns<HP> own(thread);
        Tile<UNITS> du = {};
        Tile<INPUTS> dw = {};
        float4 db = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        // What a time step's sums are made of. With room in registers it is asked for in one time step and summed in the next, when
        // the walkers ask for theirs.
        constexpr bool LATER = HP == 32;
        Row<UNITS> h_part = {};
        Row<INPUTS> x_part = {};
        float4 dpre = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const auto sum = [&]() {
            du.add(h_part, dpre);
            dw.add(x_part, dpre);
            db = make_float4(db.x + dpre.x, db.y + dpre.y, db.z + dpre.z, db.w + dpre.w);
        };
        const auto ask = [&](u32 s) {
            dpre = shared4(kept.gates + s * GateRow<HP>::ROW + own.gate * GateRow<HP>::GATE + own.four);
            h_part.load_quarter(kept.h_rows + s * HP + 4 * own.quarter);
            x_part.load_quarter(kept.x + s * EP + 4 * own.quarter);
            if constexpr (!LATER) sum();
        };
        const auto write_loss = [&]() {
            if (thread > 0) return;
            const RowLoss found = row_loss(softmax, label_logit, label);
            loss[row] = found.loss * weight;
            hits[row] = found.hit;
        };
        u32 left = t;
        if constexpr (LATER) {
            meet<THREADS>();
            ask(--left);
            // While the walkers, who would have waited for it before the barrier, take their next time step.
            write_loss();
        } else {
            write_loss();
        }
        while (left > 0) {
            meet<THREADS>();
            if constexpr (LATER) sum();
            ask(--left);
        }
        if constexpr (LATER) sum();
        // Computed anew: of 64 units it has no register through the loop.
        const Columns<HP> to(anew(thread));
        partials += row * stride;
        // Decided once: every row of the sums would ask again.
        if (hidden % 4 == 0) {
            store_sums<true>(partials, dw, du, db, to, e, hidden);
        } else {
            store_sums<false>(partials, dw, du, db, to, e, hidden);
        }
        if constexpr (SCALES<T>) {
            all_finite &= dw.all_finite() && du.all_finite();
            all_finite &= is_finite(db.x) && is_finite(db.y) && is_finite(db.z) && is_finite(db.w);
        }
    } else {
        const u32 gate = gate_of(thread);
        float slice[HP];
        {
            const u32 unit = unit_of(thread);
            float u[HP];
            // Before ids are waited for, if the column of 16 bits, which takes more registers until it is widened, leaves any.
            constexpr bool EARLY = HAS_ROOM || sizeof(T) == sizeof(float);
            if constexpr (EARLY) load_halves(a.u, hidden, unit, gate, u);
            if constexpr (HAS_ROOM) load_slice<HP>(a.u, unit, hidden, gate, slice);
            if (row >= arrive().rows) return;
            if constexpr (!EARLY) load_halves(a.u, hidden, unit, gate, u);
            float* gates = kept.gates + gate * GateRow<HP>::GATE + unit;
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
            float* mine = has_h ? kept.h_rows + place_of(unit) : (has_f ? kept.forget : kept.states) + unit;
            const auto keep = [&](bool there) {
                const GateValues stored = {as_stored<T>(v.i), as_stored<T>(v.f), as_stored<T>(v.g), as_stored<T>(v.o)};
                store_if(there, gates - GateRow<HP>::ROW, gate_slope(gate, bits, as_stored<T>(own), stored, c_prev, tanh_c));
                store_if(there && has_state, mine - HP, has_f ? stored.f : state_slope(stored.o, tanh_c));
            };
            const float* h_at = kept.h_rows + 4 * half_of(gate);
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
            // Of a unit's four lanes one has written f, one the state's slope, which all of them will read.
            __syncwarp();
        }
        const u32 again = anew(thread);
        const u32 unit = unit_of(again);
        if constexpr (!HAS_ROOM) load_slice<HP>(a.u, unit, hidden, gate_of(again), slice);
        float dh_now = 0.0f;
        if (two) {
            float dense_w[TWO];
#pragma unroll
            for (u32 c = 0; c < TWO; ++c) dense_w[c] = shared1(&kept.head->w[c][unit]);
            TwoClasses own(kept.h_rows + t * HP, *kept.head);
            if constexpr (SCALES<T>) own.gradient *= kept.head->scale;
#pragma unroll
            for (u32 c = 0; c < TWO; ++c) {
                const float gradient = __shfl_sync(ALL_LANES, own.gradient, c);
                if (unit < hidden) dh_now = fmaf(gradient, dense_w[c], dh_now);
            }
        } else {
            // The helpers' logits, then their gradients.
            meet<THREADS>();
            meet<THREADS>();
            for (u32 c = 0; unit < hidden && c < classes; ++c) {
                dh_now = fmaf(kept.dlogits[c], widen(a.dense_w[(u64)unit * classes + c]), dh_now);
            }
        }
        float dc_now = 0.0f;
        float* own_at = kept.gates + (t - 1) * GateRow<HP>::ROW + gate * GateRow<HP>::GATE + unit;
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
            add_slice<HP>(dpre_at, slice, chain);
            own_at -= GateRow<HP>::ROW;
            state_at -= HP;
            forget_at -= HP;
            dpre_at -= GateRow<HP>::ROW / 4;
            slope = shared1(own_at);
            state = shared1(state_at);
            f = shared1(forget_at);
            dh_now = sum_slices((chain[0] + chain[1]) + (chain[2] + chain[3]));
        }
    }

    // dx, 16 inputs at a time: a thread has two inputs of two time steps, so that it multiplies as many numbers as it asks shared memory
    // for. Neighbouring lanes have the same inputs, the next but one the same time steps: both are read in two passes.
    constexpr u32 SIDE = 2;
    constexpr u32 INPUTS_APART = TILE_INPUTS / SIDE;
    constexpr u32 STEPS = SIDE * SIDE;  // of 16 threads
    constexpr u32 COLUMNS = HP == 32 ? 32 : 16;  // as many as there are registers for
    for (u32 first_k = 0; first_k < e; first_k += TILE_INPUTS) {
        if (first_k > 0) {
            // The tile before has been read.
            meet<THREADS>();
            TileShare<HP, THREADS> share;
            share.load(a.w, first_k, e, hidden, threadIdx.x);
            share.store(kept.w_tile, threadIdx.x);
            meet<THREADS>();
        }
        const u32 k = threadIdx.x / SIDE % INPUTS_APART;
        for (u32 s = threadIdx.x / TILE_INPUTS * STEPS + threadIdx.x % SIDE; s < t; s += THREADS / TILE_INPUTS * STEPS) {
            // Where there is no second time step, the first again.
            const u32 at[SIDE] = {s, s + SIDE < t ? s + SIDE : s};
            float sum[SIDE][SIDE] = {};
#pragma unroll
            for (u32 part = 0; part < GATES * HP; part += COLUMNS) {
                const u32 place = part / HP * GateRow<HP>::GATE + part % HP;
                Row<COLUMNS> w[SIDE], dpre[SIDE];
#pragma unroll
                for (u32 i = 0; i < SIDE; ++i) {
                    w[i].load(kept.w_tile + (k + i * INPUTS_APART) * TILE_PITCH<HP> + part);
                    dpre[i].load(kept.gates + at[i] * GateRow<HP>::ROW + place);
                }
#pragma unroll
                for (u32 i = 0; i < SIDE; ++i) {
#pragma unroll
                    for (u32 j = 0; j < SIDE; ++j) sum[i][j] = add_chain(dpre[i], w[j], sum[i][j]);
                }
            }
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) {
                if (i > 0 && s + SIDE >= t) continue;
                const u64 row = (u64)kept.places[at[i]] * e;
#pragma unroll
                for (u32 j = 0; j < SIDE; ++j) {
                    const u32 input = first_k + k + j * INPUTS_APART;
                    if (input >= e) continue;
                    dx[row + input] = sum[i][j];
                    if constexpr (SCALES<T>) all_finite &= is_finite(sum[i][j]);
                }
            }
        }
    }
    if constexpr (SCALES<T>) {
        const bool warp_finite = __all_sync(ALL_LANES, all_finite);
        if (lane == 0) finite[row * (THREADS / WARP) + threadIdx.x / WARP] = warp_finite;
    }
}

template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ void fused_step(const Step* steps, u32* cursor, const uint2* tokens, const float* class_weights,
                                           const Weights<T>& a, float* dx, float* partials, T* h_last, float* dlogits, float* loss,
                                           float* hits, u32 t, u32 e, u32 hidden, u32 classes, u64 stride, u64 capacity,
                                           const Scaling* scaling, u32* finite) {
    extern __shared__ __align__(16) float shared[];
    const Kept<HP, EP> kept(shared, t, classes);
    const u32 at = cursor[CURSOR_STEP];
    const u32 row = blockIdx.x;
    const auto arrive = [&]() -> Arrived {
        // Nothing that depends on it moves ahead of the parameters that are asked for before.
        const u32 here = anew(at);
        if (blockIdx.x == 0 && threadIdx.x == 0) cursor[CURSOR_LAST] = here;
        // Along with the step, so also of rows that it has not.
        const u32 rows = steps[here].rows;
        const uint2* own = tokens + here * capacity + row * (t + 1);
        const u32 label = own[t].x;
        gather<EP>(a.table, kept.x, t, e, [&](u32 s, bool first) {
            const uint2 token = own[s];
            if (first) kept.places[s] = token.y;
            return token.x;
        });
        return {label, rows};
    };
    row_step<HP, EP, T>(kept, row, arrive, class_weights, a, dx, partials, h_last, dlogits, loss, hits, t, e, hidden, classes, stride,
                        scaling, finite);
}

template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ void fused_forward(const u32* data, const u32* labels, const Weights<T>& a, float* probs, float* loss,
                                              float* hits, u32 rows, u32 t, u32 e, u32 hidden, u32 classes) {
    extern __shared__ __align__(16) float shared[];
    float* x = shared;
    float* h_rows = x + t * EP;
    float* logits = h_rows + 2 * HP;
    float* probs_own = logits + classes;
    const u32 unit = unit_of(threadIdx.x);
    const u32 gate = gate_of(threadIdx.x);
    float w[EP];
    float u[HP];
    load_column(a.w, e, hidden, unit, gate, w);
    load_halves(a.u, hidden, unit, gate, u);
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
                const RowLoss found = row_loss(softmax, logits[labels[row]], labels[row]);
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
#define FUSED(hp, ep, suffix, T, parameters, arguments)                                                                          \
    extern "C" __global__ void __launch_bounds__(2 * GATES * hp, 1)                                                              \
    fused_step_h##hp##_e##ep##suffix(const Step* steps, u32* cursor, const uint2* tokens, const float* class_weights,            \
                                     const T* table, const T* w, const T* u, const float* b, const T* dense_w,                   \
                                     const float* dense_b, float* dx, float* partials, T* h_last, float* dlogits, float* loss,   \
                                     float* hits, u32 t, u32 e, u32 hidden, u32 classes, u64 stride, u64 capacity parameters) {  \
        fused_step<hp, ep, T>(steps, cursor, tokens, class_weights, Weights<T>{table, w, u, b, dense_w, dense_b}, dx, partials,  \
                              h_last, dlogits, loss, hits, t, e, hidden, classes, stride, capacity arguments);                   \
    }                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(GATES* hp, RESIDENT<hp, ep>)                                                    \
    fused_forward_h##hp##_e##ep##suffix(const u32* data, const u32* labels, const T* table, const T* w, const T* u,              \
                                        const float* b, const T* dense_w, const float* dense_b, float* probs, float* loss,       \
                                        float* hits, u32 rows, u32 t, u32 e, u32 hidden, u32 classes) {                          \
        fused_forward<hp, ep, T>(data, labels, Weights<T>{table, w, u, b, dense_w, dense_b}, probs, loss, hits, rows, t, e,      \
                                 hidden, classes);                                                                               \
    }
