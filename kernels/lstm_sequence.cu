// LSTM over a whole sequence in one launch, H <= 128; the equations stand in lstm_cell.cu.
//
// Rows of the batch are independent: a block takes one row (backward: one row after another) through all time steps, and blocks
// never wait for each other. HP is H padded to 32, 64, 96 or 128; what is padded holds zeros, so that no sum depends on it.
// A block has 4·HP threads: lanes are units, then gates (lstm_sequence.cuh). One block barrier a time step: what threads exchange through
// shared memory is double-buffered.
//
//   forward    pre holds x·W + b (one gemm over all time steps), and may be the array of the gates. U lies in registers, the last
//              output h in shared memory: to pre is added h·U, four chains of fmaf (k mod 4), added as (0+1)+(2+3). Two lanes share
//              the sums of two gates.
//   backward   dh of the step before: slice s of four sums dpre[col]·U[k,col] over the columns 16j + 4s + i (chain i) of the
//              4·HP, gates padded; the four slices are added by shuffles, (0+1)+(2+3). dpre lies in shared memory, U in registers.
//              Two lanes share the same slice of two units.
//   _e16 _e32  backward also sums dW, dU and db of its rows in registers, last time step first, into partials[block]:
//              [dW (E·4H) | dU (H·4H) | db (4H)]. Without the suffix: _h32 and _h64 sum dU and db, _h96 and _h128 nothing
//              (gemm_tn and column_sums over dpre do the rest).
//   _h128      the last SEQUENCE_STREAMED rows of U do not fit the registers. The first `staged` of these (a multiple of 4) lie in
//              dynamic shared memory, the rest is read from global memory (L2) in every time step: the order of the sums, and so
//              the bits, do not depend on it.
//   _bf16 _f16 x, U, gates, h and dpre are stored in 16 bits (src/backend/precision.rs)
// Shapes: pre gates dpre [T,B,4H], h c [T+1,B,H] (row 0 the initial state), x [T,B,E], dh [T,B,H], h0 c0 dh_last dc_last dh0 dc0 [B,H].
// Launch: forward grid B; backward any grid <= B, one partial a block; block 4·HP; dynamic shared staged·4·HP floats.
#include "lstm_sequence.cuh"

// The halves over the eights m < EIGHTS of U that are not in registers: right(m, false) own's four, right(m, true) other's. Of the first
// `staged` they lie in shared memory, a thread's four beside the next one's, the rest is read from memory.
template <u32 EIGHTS, u32 THREADS, typename Left, typename Right>
__device__ __forceinline__ void add_streamed(const float* staged_u, u32 staged, Halves& sums, Left left, Right from_memory) {
    const float4* fours = (const float4*)staged_u + threadIdx.x;
    const auto add_staged = [&](u32 m) {
        const float4 part = shared4(left(m));
        Halves::add(sums.own, part, shared4(fours + 2 * m * THREADS));
        Halves::add(sums.other, part, shared4(fours + (2 * m + 1) * THREADS));
    };
    if (staged == EIGHTS) {
        // As on GPUs with 128 KiB a block: without a branch each.
#pragma unroll
        for (u32 m = 0; m < EIGHTS; ++m) add_staged(m);
        return;
    }
    // Not unrolled: what that would hold in registers is not there.
#pragma unroll 1
    for (u32 m = 0; m < staged; ++m) add_staged(m);
#pragma unroll 1
    for (u32 m = staged; m < EIGHTS; ++m) {
        Halves::add(sums.own, shared4(left(m)), from_memory(m, false));
        // Nor both at once.
        asm volatile("" ::: "memory");
        Halves::add(sums.other, shared4(left(m)), from_memory(m, true));
    }
}

// Stages the first `staged` eights.
template <u32 THREADS, typename Right>
__device__ __forceinline__ void stage(float* staged_u, u32 staged, Right from_memory) {
    float4* fours = (float4*)staged_u + threadIdx.x;
    for (u32 m = 0; m < staged; ++m) {
        fours[2 * m * THREADS] = from_memory(m, false);
        fours[(2 * m + 1) * THREADS] = from_memory(m, true);
    }
}

template <u32 HP, u32 KEPT, typename T>
__device__ __forceinline__ void sequence_forward(const T* h0, const float* c0, const T* u, const float* pre, T* gates, T* h, float* c,
                                                 u32 t, u32 batch, u32 hidden, u32 staged) {
    constexpr u32 THREADS = GATES * HP;
    __shared__ __align__(16) float h_shared[2][HP];
    extern __shared__ __align__(16) float staged_u[];
    const u32 unit = unit_of(threadIdx.x);
    const u32 gate = gate_of(threadIdx.x);
    const bool valid = unit < hidden;
    const u32 row = blockIdx.x;

    const auto streamed = [&](u32 m, bool other) {
        const u32 thread = anew(threadIdx.x);
        return half_four(u, hidden, unit_of(thread), gate_of(thread), KEPT + 8 * m, other);
    };
    if constexpr (KEPT < HP) stage<THREADS>(staged_u, staged / 8, streamed);
    u64 state = (u64)row * hidden + unit;
    float c_now = valid && c0 ? c0[state] : 0.0f;
    if (gate == GATE_I) {
        const float h_now = valid && h0 ? widen(h0[state]) : 0.0f;
        h_shared[0][place_of(unit)] = h_now;
        if (valid) h[state] = narrow<T>(h_now);
    }
    if (gate == GATE_F && valid) c[state] = c_now;
    __syncthreads();
    // Here, where they take the only registers: before, 16 bits would spill until they are widened.
    float kept[KEPT];
    load_halves(u, hidden, unit, gate, kept);

    // Where the time step under way lies. Of 128 units no register is left for what can be made anew: steps, and a place in one array from
    // that in another.
    const auto step = [&](u32 width) { return KEPT < HP ? (u64)batch * width : held((u64)batch * width); };
    const u64 gate_step = step(GATES * hidden);
    const u64 state_step = step(hidden);
    const u64 first = (u64)row * GATES * hidden + gate * hidden + unit;
    const float* pre_at = pre + first;
    T* gates_at = gates + first;
    T* h_at = h + state + state_step;
    float* c_at = c + state + state_step;
    const Squash kind(gate == GATE_G);
    const bool is_i = gate == GATE_I;
    const bool is_f = gate == GATE_F;
    // Of h's two rows one is read and the other written, by turns.
    Place from = h_shared[0] + 4 * half_of(gate);
    Place to = h_shared[1] + place_of(unit);
    u32 apart = HP;
    float next = valid && t > 0 ? *pre_at : 0.0f;
    for (u32 left = t; left > 0; --left) {
        const float given = next;
        Halves sums;
        sums.add_all([&](u32 m) { return from + 8 * m; }, kept);
        if constexpr (KEPT < HP) {
            add_streamed<(HP - KEPT) / 8, THREADS>(staged_u, staged / 8, sums, [&](u32 m) { return from + (KEPT + 8 * m); }, streamed);
        }
        const float sum = given + sums.sum(GATES_APART);
        pre_at += gate_step;
        next = load_if(valid && left > 1, pre_at);
        const float gate_value = squash(sum, KEPT < HP ? Squash(gate_of(anew(threadIdx.x)) == GATE_G) : kind).value();
        const GateValues v = exchange(gate_value);
        // All four lanes of the unit compute its state.
        c_now = fmaf(v.f, c_now, v.i * v.g);
        const float h_now = as_stored<T>(squash(c_now, Squash(true)).product(v.o));
        store_if(is_i, to, h_now);
        if (valid) *(KEPT < HP ? gates + ((pre_at - pre) - gate_step) : gates_at) = narrow<T>(gate_value);
        if (valid && is_i) *(KEPT < HP ? h + (c_at - c) : h_at) = narrow<T>(h_now);
        if (valid && is_f) *c_at = c_now;
        gates_at += gate_step;
        h_at += state_step;
        c_at += state_step;
        from += apart;
        to -= apart;
        apart = 0 - apart;
        __syncthreads();
    }
}

// dpre·Uᵀ: the lanes of two units share them.
constexpr u32 UNITS_APART = 2;

// Where the unit's dpre lies in its gate's row: bits 1 and 4 exchanged. A half's four of a slice of 32 columns then lie side by side.
__device__ __forceinline__ constexpr u32 column_place(u32 unit) { return (unit & ~18u) | (unit & 2) << 3 | (unit & 16) >> 3; }

// Where the half's four of columns [32m, 32m + 32) of the slice lie in a GateRow.
template <u32 HP>
__device__ __forceinline__ constexpr u32 back_place(u32 m, u32 slice, u32 half) {
    return 32 * m / HP * GateRow<HP>::GATE + 32 * m % HP + 16 * half + 4 * slice;
}

// These of U's row of the unit, or of the other unit: columns 16j + 4·slice + 2·half + {0, 1} of both j.
template <u32 HP, typename T>
__device__ __forceinline__ float4 back_four(const T* u, u32 hidden, u32 unit, u32 slice, u32 half, u32 m, bool other) {
    const u32 row = other ? unit ^ UNITS_APART : unit;
    if (row >= hidden) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const T* from = u + ((u64)row * GATES + 32 * m / HP) * hidden;
    const u32 first = 32 * m % HP + 4 * slice + 2 * half;
    const float2 one = load2(from, first, hidden, hidden % 2 == 0);
    const float2 two = load2(from, first + 16, hidden, hidden % 2 == 0);
    return make_float4(one.x, one.y, two.x, two.y);
}

// Whether pairs are stored as such; hidden is even then.
template <bool PAIRS>
__device__ __forceinline__ void store_two(float* row, u32 unit, u32 hidden, float x, float y) {
    if constexpr (PAIRS) {
        if (unit < hidden) *(float2*)(row + unit) = make_float2(x, y);
    } else {
        if (unit < hidden) row[unit] = x;
        if (unit + 1 < hidden) row[unit + 1] = y;
    }
}

// A tile of a matrix [n, 4·hidden] whose columns are in the order of column_place.
template <bool PAIRS, u32 HP, u32 N>
__device__ __forceinline__ void store_tile(float* to, const Tile<N>& tile, const Columns<HP>& own, u32 n, u32 hidden) {
    const u32 unit = column_place(own.four);
    to += ((u64)own.first_row() * GATES + own.gate) * hidden;
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        if (own.first_row() + own.further(k) >= n) continue;
        float* row = to + (u64)own.further(k) * GATES * hidden;
        store_two<PAIRS>(row, unit, hidden, tile.sum[k][0], tile.sum[k][1]);
        store_two<PAIRS>(row, unit + 16, hidden, tile.sum[k][2], tile.sum[k][3]);
    }
}

// What backward reads of one time step: the thread's own gate, its unit's state before the step, the gradient by its unit's
// output, and its share of the row's previous output and input.
struct Read {
    float gate, c_prev, dh, h_prev, x;
};

// What backward exchanges in shared memory, by turns in one of two: a time step's dpre, and what dU and dW multiply it with.
template <u32 HP, u32 EP, bool SUMS>
struct Exchanged {
    float dpre[GateRow<HP>::ROW];  // by column_place
    float h[SUMS ? HP : 4];
    float x[EP > 0 ? EP : 4];
};

// EP: how many input columns dW is summed for (0: none). SUMS: dU and db are summed.
template <u32 HP, u32 KEPT, u32 EP, bool SUMS, typename T>
__device__ __forceinline__ void sequence_backward(const T* x, const T* u, const T* gates, const T* h, const float* c,
                                                  const float* dh, const float* dh_last, const float* dc_last, T* dpre, float* dh0,
                                                  float* dc0, float* partials, u32 t, u32 batch, u32 e, u32 hidden, u64 stride,
                                                  u32 staged) {
    constexpr u32 THREADS = GATES * HP;
    typedef Exchanged<HP, EP, SUMS> Buffer;
    __shared__ __align__(16) Buffer buffers[2];
    extern __shared__ __align__(16) float staged_u[];
    const u32 unit = unit_of(threadIdx.x);
    const u32 gate = gate_of(threadIdx.x);  // also the slice of U
    const u32 half = unit / UNITS_APART % 2;
    const bool valid = unit < hidden;
    const bool has_h = SUMS && threadIdx.x < hidden;
    const bool has_x = EP > 0 && threadIdx.x < e;
    const u32 columns = GATES * hidden;
    const u32 col = gate * hidden + unit;

    float kept[KEPT];
    load_fours(kept, [&](u32 n) { return back_four<HP>(u, hidden, unit, gate, half, n / 2, n % 2 != 0); });
    const auto streamed = [&](u32 m, bool other) { return back_four<HP>(u, hidden, unit, gate, half, KEPT / 8 + m, other); };
    if constexpr (KEPT < HP) stage<THREADS>(staged_u, staged / 8, streamed);
    if (SUMS && threadIdx.x < HP) buffers[0].h[threadIdx.x] = buffers[1].h[threadIdx.x] = 0.0f;
    if (EP > 0 && threadIdx.x < EP) buffers[0].x[threadIdx.x] = buffers[1].x[threadIdx.x] = 0.0f;
    __syncthreads();

    const Columns<HP> own(threadIdx.x);
    Tile<(SUMS ? HP / 4 : 4)> du = {};
    Tile<(EP > 0 ? EP / 4 : 4)> dw = {};
    float db = 0.0f;

    // Where the thread writes and reads in one of the buffers, and how far away the other one is.
    Place dpre_to = buffers[0].dpre + gate * GateRow<HP>::GATE + column_place(unit);
    Place dpre_from = buffers[0].dpre + back_place<HP>(0, gate, half);
    Place left_to = buffers[0].h + threadIdx.x;
    Place left_from = buffers[0].h + 4 * own.quarter;
    Place right_from = buffers[0].dpre + own.gate * GateRow<HP>::GATE + own.four;
    u32 apart = sizeof(Buffer) / sizeof(float);
    // How far the time step before is, as in forward.
    const auto step = [&](u32 width) { return KEPT < HP ? (u64)batch * width : held((u64)batch * width); };
    const u64 gate_step = step(columns);
    const u64 state_step = step(hidden);
    const u64 x_step = step(e);
    for (u32 row = blockIdx.x; row < batch; row += gridDim.x) {
        const u64 state = (u64)row * hidden + unit;
        float dh_now = valid && dh_last ? dh_last[state] : 0.0f;
        float dc_now = valid && dc_last ? dc_last[state] : 0.0f;
        // Where the time step lies that is asked for next, the last one first, and of dpre the one under way.
        const u64 last = (u64)(t > 0 ? t - 1 : 0) * batch + row;
        const T* gate_at = gates + last * columns + col;
        const float* c_at = c + last * hidden + unit;
        const float* dh_at = (dh ? dh : c) + last * hidden + unit;
        const T* h_at = h + last * hidden + threadIdx.x;
        const T* x_at = x + last * e + threadIdx.x;
        T* dpre_at = dpre + last * columns + col;
        const auto read = [&](bool there) {
            Read read = {};
            if (there && valid) {
                read.gate = widen(*gate_at);
                read.c_prev = *c_at;
            }
            if (there && valid && dh) read.dh = *(KEPT < HP ? dh + (c_at - c) : dh_at);
            if (there && has_h) read.h_prev = widen(*h_at);
            if (there && has_x) read.x = widen(*x_at);
            gate_at -= gate_step;
            c_at -= state_step;
            dh_at -= state_step;
            h_at -= state_step;
            x_at -= x_step;
            return read;
        };
        Read now = read(t > 0);
        // What a time step reads from global memory is asked for two steps ahead.
        Read next = read(t > 1);
        // What a step needs besides dh and dc, ready before they are.
        float c_now = valid ? c[state + (u64)t * batch * hidden] : 0.0f;
        float slope, of_state, f;
        const auto prepare = [&](const Read& step) {
            const GateValues v = exchange(step.gate);
            const float tanh_c = strict_tanh(c_now);
            slope = gate_slope(gate, GateBits(gate), step.gate, v, step.c_prev, tanh_c);
            of_state = state_slope(v.o, tanh_c);
            f = v.f;
            c_now = step.c_prev;
        };
        prepare(now);
        for (u32 left = t; left > 0; --left) {
            dh_now += now.dh;
            if constexpr (SUMS) store_if(has_h, left_to, now.h_prev);
            if constexpr (EP > 0) store_if(has_x, left_to + HP, now.x);
            const float dpre_own = as_stored<T>(gate_backward(gate, slope, of_state, f, dh_now, dc_now));
            store_shared1(dpre_to, dpre_own);
            __syncthreads();

            Halves sums;
            sums.add_all([&](u32 m) { return dpre_from + back_place<HP>(m, 0, 0); }, kept);
            if constexpr (KEPT < HP) {
                add_streamed<(HP - KEPT) / 8, THREADS>(
                    staged_u, staged / 8, sums, [&](u32 m) { return dpre_from + back_place<HP>(KEPT / 8 + m, 0, 0); }, streamed);
            }
            if (valid) *(KEPT < HP ? dpre + ((gate_at - gates) + 2 * gate_step) : dpre_at) = narrow<T>(dpre_own);
            dpre_at -= gate_step;
            // Of the step to come, meanwhile; of none at the last one, which is cheaper than a branch.
            now = next;
            if constexpr (KEPT == HP) next = read(left > 2);
            prepare(now);
            dh_now = sum_slices(sums.sum(UNITS_APART));
            // Of 128 units here, where registers are free.
            if constexpr (KEPT < HP) next = read(left > 2);

            if constexpr (SUMS) {
                const float4 right = shared4(right_from);
                Row<HP / 4> h_part;
                h_part.load_quarter(left_from);
                du.add(h_part, right);
                if constexpr (EP > 0) {
                    Row<EP / 4> x_part;
                    x_part.load_quarter(left_from + HP);
                    dw.add(x_part, right);
                }
                db += dpre_own;
            }
            // The other buffer was last read before the barrier above.
            dpre_to += apart;
            dpre_from += apart;
            left_to += apart;
            left_from += apart;
            right_from += apart;
            apart = 0 - apart;
        }
        if (valid && gate == GATE_I && dh0) dh0[state] = dh_now;
        if (valid && gate == GATE_F && dc0) dc0[state] = dc_now;
    }

    if constexpr (SUMS) {
        partials += blockIdx.x * stride;
        // Decided once: every row of the sums would ask again.
        if (hidden % 2 == 0) {
            if constexpr (EP > 0) store_tile<true>(partials, dw, own, e, hidden);
            store_tile<true>(partials + (u64)e * columns, du, own, hidden, hidden);
        } else {
            if constexpr (EP > 0) store_tile<false>(partials, dw, own, e, hidden);
            store_tile<false>(partials + (u64)e * columns, du, own, hidden, hidden);
        }
        if (valid) partials[(u64)(e + hidden) * columns + col] = db;
    }
}

#define FORWARD(name, hp, kept, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(GATES* hp, hp == 32 ? 3 : 1)                                                   \
    lstm_sequence_forward_##name(const T* h0, const float* c0, const T* u, const float* pre, T* gates, T* h, float* c, u32 t,   \
                                 u32 batch, u32 hidden, u32 staged) {                                                           \
        sequence_forward<hp, kept, T>(h0, c0, u, pre, gates, h, c, t, batch, hidden, staged);                                   \
    }
#define BACKWARD(name, hp, kept, ep, sums, T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(GATES* hp, hp == 32 ? 3 : 1)                                                   \
    lstm_sequence_backward_##name(const T* x, const T* u, const T* gates, const T* h, const float* c, const float* dh,          \
                                  const float* dh_last, const float* dc_last, T* dpre, float* dh0, float* dc0,                  \
                                  float* partials, u32 t, u32 batch, u32 e, u32 hidden, u64 stride, u32 staged) {               \
        sequence_backward<hp, kept, ep, sums, T>(x, u, gates, h, c, dh, dh_last, dc_last, dpre, dh0, dc0, partials, t, batch,   \
                                                 e, hidden, stride, staged);                                                    \
    }
#define KERNELS(suffix, T)                                                                                                      \
    FORWARD(h32##suffix, 32, 32, T)                                                                                             \
    FORWARD(h64##suffix, 64, 64, T)                                                                                             \
    FORWARD(h96##suffix, 96, 96, T)                                                                                             \
    FORWARD(h128##suffix, 128, 128 - SEQUENCE_STREAMED, T)                                                                      \
    BACKWARD(h32_e16##suffix, 32, 32, 16, true, T)                                                                              \
    BACKWARD(h32_e32##suffix, 32, 32, 32, true, T)                                                                              \
    BACKWARD(h32##suffix, 32, 32, 0, true, T)                                                                                   \
    BACKWARD(h64_e16##suffix, 64, 64, 16, true, T)                                                                              \
    BACKWARD(h64_e32##suffix, 64, 64, 32, true, T)                                                                              \
    BACKWARD(h64##suffix, 64, 64, 0, true, T)                                                                                   \
    BACKWARD(h96##suffix, 96, 96, 0, false, T)                                                                                  \
    BACKWARD(h128##suffix, 128, 128 - SEQUENCE_STREAMED, 0, false, T)
KERNELS(, float)
KERNELS(_bf16, bf16)
KERNELS(_f16, f16)
