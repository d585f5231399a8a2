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

    // Of 128 units no register is left for what can be made anew.
    const auto thread = [&]() { return KEPT < HP ? anew(threadIdx.x) : threadIdx.x; };
    const auto step = [&]() { return (u64)(KEPT < HP ? anew(batch) : batch) * hidden; };
    // The place in pre and gates that belongs to one in h and c.
    const auto column = [&](u64 state) {
        // Also not for this, of 16 bits, whose rounding takes one.
        const u32 own = sizeof(T) < sizeof(float) ? thread() : threadIdx.x;
        return GATES * state + (int)(gate_of(own) * hidden - 3 * unit_of(own));
    };
    float next = valid && t > 0 ? pre[column(state)] : 0.0f;
    // Of h's two rows one is read and the other written, by turns: this one, or 0, is read.
    u32 turn = 0;
    for (u32 left = t; left > 0; --left) {
        const float given = next;
        next = valid && left > 1 ? pre[column(state + step())] : 0.0f;
        const float* h_prev = h_shared[0] + turn + 4 * half_of(gate);
        Halves sums;
        sums.add_all([&](u32 m) { return h_prev + 8 * m; }, kept);
        if constexpr (KEPT < HP) {
            add_streamed<(HP - KEPT) / 8, THREADS>(staged_u, staged / 8, sums, [&](u32 m) { return h_prev + KEPT + 8 * m; }, streamed);
        }
        const float sum = given + sums.sum(GATES_APART);
        const float gate_value = squash(sum, Squash(gate_of(thread()) == GATE_G)).value();
        const GateValues v = exchange(gate_value);
        // All four lanes of the unit compute its state.
        c_now = fmaf(v.f, c_now, v.i * v.g);
        const float h_now = as_stored<T>(squash(c_now, Squash(true)).product(v.o));
        turn ^= HP;
        store_if(gate == GATE_I, h_shared[0] + turn + place_of(unit_of(thread())), h_now);
        if (valid) gates[column(state)] = narrow<T>(gate_value);
        state += step();
        if (valid && gate == GATE_I) h[state] = narrow<T>(h_now);
        if (valid && gate == GATE_F) c[state] = c_now;
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

// What backward reads of one time step: the thread's own gate, its unit's state before the step, the gradient by its unit's
// output, and its share of the row's previous output and input.
struct Read {
    float gate, c_prev, dh, h_prev, x;
};

// EP: how many input columns dW is summed for (0: none). SUMS: dU and db are summed.
template <u32 HP, u32 KEPT, u32 EP, bool SUMS, typename T>
__device__ __forceinline__ void sequence_backward(const T* x, const T* u, const T* gates, const T* h, const float* c,
                                                  const float* dh, const float* dh_last, const float* dc_last, T* dpre, float* dh0,
                                                  float* dc0, float* partials, u32 t, u32 batch, u32 e, u32 hidden, u64 stride,
                                                  u32 staged) {
    constexpr u32 THREADS = GATES * HP;
    __shared__ __align__(16) float dpre_shared[2][GateRow<HP>::ROW];
    __shared__ __align__(16) float h_shared[2][SUMS ? HP : 1];
    __shared__ __align__(16) float x_shared[2][EP > 0 ? EP : 1];
    extern __shared__ __align__(16) float staged_u[];
    const u32 unit = unit_of(threadIdx.x);
    const u32 gate = gate_of(threadIdx.x);  // also the slice of U
    const u32 half = unit / UNITS_APART % 2;
    const bool valid = unit < hidden;
    const u32 columns = GATES * hidden;
    const u32 col = gate * hidden + unit;
    const u32 place = gate * GateRow<HP>::GATE + column_place(unit);  // in a GateRow

    float kept[KEPT];
    load_fours(kept, [&](u32 n) { return back_four<HP>(u, hidden, unit, gate, half, n / 2, n % 2 != 0); });
    const auto streamed = [&](u32 m, bool other) { return back_four<HP>(u, hidden, unit, gate, half, KEPT / 8 + m, other); };
    if constexpr (KEPT < HP) stage<THREADS>(staged_u, staged / 8, streamed);
    if (SUMS && threadIdx.x < HP) {
        h_shared[0][threadIdx.x] = 0.0f;
        h_shared[1][threadIdx.x] = 0.0f;
    }
    if (EP > 0 && threadIdx.x < EP) {
        x_shared[0][threadIdx.x] = 0.0f;
        x_shared[1][threadIdx.x] = 0.0f;
    }
    __syncthreads();

    float du[SUMS ? HP : 1];
    float dw[EP > 0 ? EP : 1];
    float db = 0.0f;
#pragma unroll
    for (u32 k = 0; k < (SUMS ? HP : 1); ++k) du[k] = 0.0f;
#pragma unroll
    for (u32 k = 0; k < (EP > 0 ? EP : 1); ++k) dw[k] = 0.0f;

    u32 buffer = 0;
    const u64 state_step = (u64)batch * hidden;
    for (u32 row = blockIdx.x; row < batch; row += gridDim.x) {
        const u64 state = (u64)row * hidden + unit;
        float dh_now = valid && dh_last ? dh_last[state] : 0.0f;
        float dc_now = valid && dc_last ? dc_last[state] : 0.0f;
        // What a time step reads from global memory is asked for two steps ahead.
        const auto read = [&](u32 s) {
            const u64 at = state + s * state_step;
            const u64 token = (u64)s * batch + row;
            Read read = {};
            read.gate = valid ? widen(gates[token * columns + col]) : 0.0f;
            read.c_prev = valid ? c[at] : 0.0f;
            read.dh = valid && dh ? dh[at] : 0.0f;
            if (SUMS) read.h_prev = threadIdx.x < hidden ? widen(h[token * hidden + threadIdx.x]) : 0.0f;
            if (EP > 0) read.x = threadIdx.x < e ? widen(x[token * e + threadIdx.x]) : 0.0f;
            return read;
        };
        Read next = {};
        Read later = {};
        if (t > 0) next = read(t - 1);
        if (t > 1) later = read(t - 2);
        // What a step needs besides dh and dc, ready before they are.
        float c_now = valid ? c[state + t * state_step] : 0.0f;
        float slope, of_state, f;
        const auto prepare = [&]() {
            const GateValues v = exchange(next.gate);
            const float tanh_c = strict_tanh(c_now);
            slope = gate_slope(gate, GateBits(gate), next.gate, v, next.c_prev, tanh_c);
            of_state = state_slope(v.o, tanh_c);
            f = v.f;
            c_now = next.c_prev;
        };
        prepare();
        for (u32 s = t; s-- > 0;) {
            const Read now = next;
            next = later;
            if (s > 1) later = read(s - 2);
            dh_now += now.dh;
            if (SUMS && threadIdx.x < hidden) h_shared[buffer][threadIdx.x] = now.h_prev;
            if (EP > 0 && threadIdx.x < e) x_shared[buffer][threadIdx.x] = now.x;

            const float dpre_own = as_stored<T>(gate_backward(gate, slope, of_state, f, dh_now, dc_now));
            dpre_shared[buffer][place] = dpre_own;
            __syncthreads();

            const float* dpre_all = dpre_shared[buffer] + back_place<HP>(0, gate, half);
            Halves sums;
            sums.add_all([&](u32 m) { return dpre_all + back_place<HP>(m, 0, 0); }, kept);
            if constexpr (KEPT < HP) {
                add_streamed<(HP - KEPT) / 8, THREADS>(
                    staged_u, staged / 8, sums, [&](u32 m) { return dpre_all + back_place<HP>(KEPT / 8 + m, 0, 0); }, streamed);
            }
            if (valid) dpre[((u64)s * batch + row) * columns + col] = narrow<T>(dpre_own);
            // Of the step to come, meanwhile; of none at s = 0, which is cheaper than a branch.
            prepare();
            dh_now = sum_slices(sums.sum(UNITS_APART));

            if constexpr (SUMS) {
                add_column((const float4*)h_shared[buffer], dpre_own, du);
                db += dpre_own;
            }
            if constexpr (EP > 0) add_column((const float4*)x_shared[buffer], dpre_own, dw);
            // The other buffer was last read before the barrier above.
            buffer ^= 1;
        }
        if (valid && gate == GATE_I && dh0) dh0[state] = dh_now;
        if (valid && gate == GATE_F && dc0) dc0[state] = dc_now;
    }

    if (SUMS && valid) {
        partials += blockIdx.x * stride;
        if constexpr (EP > 0) {
#pragma unroll
            for (u32 k = 0; k < EP; ++k) {
                if (k < e) partials[(u64)k * columns + col] = dw[k];
            }
        }
        partials += (u64)e * columns;
#pragma unroll
        for (u32 k = 0; k < HP; ++k) {
            if (k < hidden) partials[(u64)k * columns + col] = du[k];
        }
        partials[(u64)hidden * columns + col] = db;
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
