// LSTM over a whole sequence in one launch, H <= 128; the equations stand in lstm_cell.cu.
//
// Rows of the batch are independent: a block takes one row (backward: one row after another) through all time steps, and blocks
// never wait for each other. HP is H padded to 32, 64, 96 or 128; what is padded holds zeros, so that no sum depends on it.
// A block has 4·HP threads. Thread tid belongs to unit tid/4; tid%4 is its gate, so that the four gates of a unit lie in one warp
// and are exchanged by shuffles (lstm_sequence.cuh). One block barrier a time step: what threads exchange through shared memory is
// double-buffered.
//
//   forward    pre holds x·W + b (one gemm over all time steps), and may be the array of the gates. A thread keeps its column of U
//              in registers, the last output h lies in shared memory: to pre is added h·U, four chains of fmaf (k mod 4), added as
//              (0+1)+(2+3).
//   backward   dh of the step before: thread (unit k, slice s) sums dpre[col]·U[k,col] over the columns 16j + 4s + i (chain i) of
//              the 4·HP, gates padded; the four slices are added by shuffles, (0+1)+(2+3). dpre lies in shared memory, U's slice
//              in registers.
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

// Four rows of a column of U from row k on; what is padded is 0.
template <typename T>
__device__ __forceinline__ float4 column_four(const T* u, u32 k, u32 hidden, u32 columns, u32 col, bool valid) {
    const auto at = [&](u32 k) { return valid && k < hidden ? widen(u[(u64)k * columns + col]) : 0.0f; };
    return make_float4(at(k), at(k + 1), at(k + 2), at(k + 3));
}

// chain[i] += left(n).i · right n's .i over groups n < GROUPS of U that are not in registers: the first `staged` in shared memory, a group
// of each thread beside the next thread's, the rest from memory.
template <u32 GROUPS, u32 THREADS, typename Left, typename Right>
__device__ __forceinline__ void add_streamed(const float* staged_u, u32 staged, float (&chain)[4], Left left, Right from_memory) {
    const float4* fours = (const float4*)staged_u + threadIdx.x;
    const auto add = [&](u32 n, float4 weight) {
        const float4 part = left(n);
        chain[0] = fmaf(part.x, weight.x, chain[0]);
        chain[1] = fmaf(part.y, weight.y, chain[1]);
        chain[2] = fmaf(part.z, weight.z, chain[2]);
        chain[3] = fmaf(part.w, weight.w, chain[3]);
    };
    if (staged == GROUPS) {
        // As on GPUs with 128 KiB a block: without a branch a group.
#pragma unroll
        for (u32 n = 0; n < GROUPS; ++n) add(n, shared4(fours + n * THREADS));
        return;
    }
    // Not unrolled: what that would hold in registers is not there.
#pragma unroll 1
    for (u32 n = 0; n < staged; ++n) add(n, shared4(fours + n * THREADS));
#pragma unroll 1
    for (u32 n = staged; n < GROUPS; ++n) add(n, from_memory(n));
}

template <u32 HP, u32 KEPT, typename T>
__device__ __forceinline__ void sequence_forward(const T* h0, const float* c0, const T* u, const float* pre, T* gates, T* h, float* c,
                                                 u32 t, u32 batch, u32 hidden, u32 staged) {
    constexpr u32 THREADS = GATES * HP;
    __shared__ __align__(16) float h_shared[2][HP];
    extern __shared__ __align__(16) float staged_u[];
    const u32 unit = threadIdx.x / GATES;
    const u32 gate = threadIdx.x % GATES;
    const bool valid = unit < hidden;
    const u32 row = blockIdx.x;
    const u32 columns = GATES * hidden;
    const u32 col = gate * hidden + unit;

    float kept[KEPT];
#pragma unroll
    for (u32 k = 0; k < KEPT; ++k) {
        // What is padded reads another number and drops it: predicated loads of 16 bits spill (on sm_80).
        const float weight = widen(u[(u64)min(k, hidden - 1) * columns + (valid ? col : 0)]);
        kept[k] = valid && k < hidden ? weight : 0.0f;
    }
    if constexpr (KEPT < HP) {
        for (u32 n = 0; n < staged / 4; ++n) {
            ((float4*)staged_u)[n * THREADS + threadIdx.x] = column_four(u, KEPT + 4 * n, hidden, columns, col, valid);
        }
    }

    const u64 state = (u64)row * hidden + unit;
    const u64 state_step = (u64)batch * hidden;
    float c_now = valid && c0 ? c0[state] : 0.0f;
    if (gate == GATE_I) {
        const float h_now = valid && h0 ? widen(h0[state]) : 0.0f;
        h_shared[0][unit] = h_now;
        if (valid) h[state] = narrow<T>(h_now);
    }
    if (gate == GATE_F && valid) c[state] = c_now;
    __syncthreads();

    const float* pre_at = pre + (u64)row * columns + col;
    T* gate_at = gates + (u64)row * columns + col;
    const u64 gate_step = (u64)batch * columns;
    float next = valid && t > 0 ? *pre_at : 0.0f;
    for (u32 s = 0; s < t; ++s) {
        const float given = next;
        next = valid && s + 1 < t ? pre_at[gate_step] : 0.0f;
        const float4* h_prev = (const float4*)h_shared[s % 2];
        float chain[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        add_product(h_prev, kept, chain);
        if constexpr (KEPT < HP) {
            add_streamed<(HP - KEPT) / 4, THREADS>(
                staged_u, staged / 4, chain, [&](u32 n) { return shared4(h_prev + KEPT / 4 + n); },
                [&](u32 n) { return column_four(u, KEPT + 4 * n, hidden, columns, col, valid); });
        }
        const float sum = given + ((chain[0] + chain[1]) + (chain[2] + chain[3]));
        // Of 128 units no register is left to hold what Squash is made of: it is made anew.
        u32 own_gate = gate;
        if constexpr (KEPT < HP) asm volatile("" : "+r"(own_gate));
        const float gate_value = squash(sum, Squash(own_gate == GATE_G)).value();
        const GateValues v = exchange(gate_value);
        // All four lanes of the unit compute its state.
        c_now = fmaf(v.f, c_now, v.i * v.g);
        const float h_now = as_stored<T>(squash(c_now, Squash(true)).product(v.o));
        const u64 at = state + (s + 1) * state_step;
        if (gate == GATE_I) h_shared[(s + 1) % 2][unit] = h_now;
        if (valid) {
            *gate_at = narrow<T>(gate_value);
            if (gate == GATE_I) h[at] = narrow<T>(h_now);
            if (gate == GATE_F) c[at] = c_now;
        }
        pre_at += gate_step;
        gate_at += gate_step;
        __syncthreads();
    }
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
    const u32 unit = threadIdx.x / GATES;
    const u32 gate = threadIdx.x % GATES;  // also the slice of U
    const bool valid = unit < hidden;
    const u32 columns = GATES * hidden;
    const u32 col = gate * hidden + unit;
    const u32 place = gate * GateRow<HP>::GATE + unit;  // in a GateRow

    float kept[KEPT];
    load_slice<HP>(u, unit, hidden, gate, kept);
    if constexpr (KEPT < HP) {
        float4* staged_fours = (float4*)staged_u;
        for (u32 n = 0; n < staged / 4; ++n) {
            staged_fours[n * THREADS + threadIdx.x] = slice_of<HP>(u, unit, hidden, KEPT / 4 + n, gate);
        }
    }
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
            if (valid) dpre[((u64)s * batch + row) * columns + col] = narrow<T>(dpre_own);
            dpre_shared[buffer][place] = dpre_own;
            __syncthreads();

            const float4* dpre_all = (const float4*)dpre_shared[buffer];
            float chain[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            add_slice<HP>(dpre_all, gate, kept, chain);
            if constexpr (KEPT < HP) {
                add_streamed<(HP - KEPT) / 4, THREADS>(
                    staged_u, staged / 4, chain, [&](u32 n) { return shared4(dpre_all + slice_place<HP>(KEPT / 4 + n, gate)); },
                    [&](u32 n) { return slice_of<HP>(u, unit, hidden, KEPT / 4 + n, gate); });
            }
            // Of the step to come, meanwhile; of none at s = 0, which is cheaper than a branch.
            prepare();
            dh_now = sum_slices(chain);

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
    extern "C" __global__ void __launch_bounds__(GATES* hp)                                                                     \
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
