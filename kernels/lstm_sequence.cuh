// What the kernels of a whole sequence share (lstm_sequence.cu, fused.cu): how 4·HP threads divide a row's work.
//
// HP is H padded to a multiple of 32; what is padded holds zeros, so that no sum depends on it. A warp has eight units: its lanes are
// their gate i, then f, g and o. So the four gates of a unit lie in one warp and are exchanged by shuffles, and neighbouring lanes,
// which have the same gate, ask shared memory for the same numbers: a load of four then takes two passes over it instead of four.
#pragma once
#include "half.cuh"

// Units of a warp.
constexpr u32 WARP_UNITS = WARP / GATES;

// The unit and the gate of thread `thread` of a row.
__device__ __forceinline__ constexpr u32 unit_of(u32 thread) { return thread / WARP * WARP_UNITS + thread % WARP_UNITS; }
__device__ __forceinline__ constexpr u32 gate_of(u32 thread) { return thread % WARP / WARP_UNITS; }

// A row of 4·HP numbers by gates in shared memory. Gates are 8 numbers further apart than HP: the eight units and four gates of a
// warp fall on 32 different banks. Neighbouring rows begin at different banks.
template <u32 HP>
struct GateRow {
    static constexpr u32 GATE = HP + 8;
    static constexpr u32 ROW = GATES * GATE + 4;
};

// ---------------------------------------------------------------- products that two lanes share
//
// What bounds a product of a row in shared memory with a matrix in registers is shared memory: it returns as many numbers as are
// multiplied. So two lanes share their two sums, each half of both: of the four chains of a sum (k mod 4, added as (0+1)+(2+3)) one
// has 0 and 1, the other 2 and 3. What a lane reads lies by fours: its two chains' numbers of two groups of four.

// Two sums, of the lane and of the other, two chains each.
struct Halves {
    float own[2], other[2];

    __device__ __forceinline__ Halves() : own{0.0f, 0.0f}, other{0.0f, 0.0f} {}

    // left: of two groups of four numbers the lane's two, one group after the other.
    static __device__ __forceinline__ void add(float (&sum)[2], float4 left, float4 right) {
        sum[0] = fmaf(left.x, right.x, sum[0]);
        sum[1] = fmaf(left.y, right.y, sum[1]);
        sum[0] = fmaf(left.z, right.z, sum[0]);
        sum[1] = fmaf(left.w, right.w, sum[1]);
    }

    // right: eight numbers for each two groups, which left(m) has the place of.
    template <u32 N, typename Left>
    __device__ __forceinline__ void add_all(Left left, const float (&right)[N]) {
#pragma unroll
        for (u32 m = 0; m < N / 8; ++m) {
            const float4 part = shared4(left(m));
            const float* r = right + 8 * m;
            add(own, part, make_float4(r[0], r[1], r[2], r[3]));
            add(other, part, make_float4(r[4], r[5], r[6], r[7]));
        }
    }

    // The lane's sum; the other lane is `apart` away.
    __device__ __forceinline__ float sum(u32 apart) const {
        const float theirs = __shfl_xor_sync(ALL_LANES, other[0] + other[1], apart);
        return (own[0] + own[1]) + theirs;
    }
};

// h·U: lanes of gates i and f share them, and those of g and o; half 0 has i and g.
__device__ __forceinline__ constexpr u32 half_of(u32 gate) { return gate % 2; }
constexpr u32 GATES_APART = WARP_UNITS;

// Where h of unit k lies in its row: bits 1 and 2 of k exchanged. A half's four of eight units then lie side by side.
__device__ __forceinline__ constexpr u32 place_of(u32 k) { return (k & ~6u) | (k & 2) << 1 | (k & 4) >> 1; }

// A half's four of the rows [first, first + 8) of U's column of the unit and its gate, or the other gate; what is padded
// is 0.
template <typename T>
__device__ __forceinline__ float4 half_four(const T* u, u32 hidden, u32 unit, u32 gate, u32 first, bool other) {
    const u32 col = (other ? gate ^ 1 : gate) * hidden + unit;
    const auto at = [&](u32 i) {
        const u32 k = first + i / 2 * 4 + 2 * half_of(gate) + i % 2;
        return unit < hidden && k < hidden ? widen(u[k * GATES * hidden + col]) : 0.0f;
    };
    return make_float4(at(0), at(1), at(2), at(3));
}

// N numbers by fours.
template <u32 N, typename F>
__device__ __forceinline__ void load_fours(float (&to)[N], F four_of) {
#pragma unroll
    for (u32 n = 0; n < N / 4; ++n) {
        const float4 four = four_of(n);
        to[4 * n + 0] = four.x;
        to[4 * n + 1] = four.y;
        to[4 * n + 2] = four.z;
        to[4 * n + 3] = four.w;
    }
}

// Of the first N rows, own and other by turns.
template <u32 N, typename T>
__device__ __forceinline__ void load_halves(const T* u, u32 hidden, u32 unit, u32 gate, float (&halves)[N]) {
    load_fours(halves, [&](u32 n) { return half_four(u, hidden, unit, gate, n / 2 * 8, n % 2 != 0); });
}

// given + h·U of the lane's gate; h: the row from the lane's half on (4·half).
template <u32 HP>
__device__ __forceinline__ float recur(const float* h, const float (&u)[HP], float given) {
    Halves sums;
    sums.add_all([&](u32 m) { return h + 8 * m; }, u);
    return given + sums.sum(GATES_APART);
}

// ---------------------------------------------------------------- products by slices
//
// A unit's four lanes share dpre·Uᵀ of its row of U, padded to 4·HP columns by gates: slice s, of gate s' lane, has the columns
// 16j + 4s + i, chain i. Four of them never lie in two gates.

// Where group j of slice 0 lies in a GateRow, in float4; slice s lies s further.
template <u32 HP>
__device__ __forceinline__ constexpr u32 group_place(u32 j) {
    return 16 * j / HP * (GateRow<HP>::GATE / 4) + 16 * j % HP / 4;
}

// The thread's slice of row `unit` of U. One load a group where H is a multiple of 4 (U begins at a multiple of 16 bytes).
template <u32 HP, typename T>
__device__ __forceinline__ void load_slice(const T* u, u32 unit, u32 hidden, u32 slice, float (&kept)[HP]) {
    load_fours(kept, [&](u32 j) {
        const u32 gate = 16 * j / HP;
        if (unit >= hidden) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        return load4(u + ((u64)unit * GATES + gate) * hidden, 16 * j % HP + 4 * slice, hidden, hidden % 4 == 0);
    });
}

// chain[i] += dpre · the slice; dpre: the row from the slice on.
template <u32 HP>
__device__ __forceinline__ void add_slice(const float4* dpre, const float (&kept)[HP], float (&chain)[4]) {
#pragma unroll
    for (u32 j = 0; j < HP / 4; ++j) {
        const float4 part = shared4(dpre + group_place<HP>(j));
        chain[0] = fmaf(part.x, kept[4 * j + 0], chain[0]);
        chain[1] = fmaf(part.y, kept[4 * j + 1], chain[1]);
        chain[2] = fmaf(part.z, kept[4 * j + 2], chain[2]);
        chain[3] = fmaf(part.w, kept[4 * j + 3], chain[3]);
    }
}

// The four slices of the unit, (0+1)+(2+3). All four lanes get the sum.
__device__ __forceinline__ float sum_slices(float slice) {
    // All three at once.
    const float by_1 = __shfl_xor_sync(ALL_LANES, slice, WARP_UNITS);
    const float by_2 = __shfl_xor_sync(ALL_LANES, slice, 2 * WARP_UNITS);
    const float by_3 = __shfl_xor_sync(ALL_LANES, slice, 3 * WARP_UNITS);
    return (slice + by_1) + (by_2 + by_3);
}

// ---------------------------------------------------------------- outer products
//
// Of a row of h or x with dpre, the sums over time steps: a thread has four columns and a quarter of the rows, so that it multiplies more
// numbers than it asks shared memory for. Neighbouring lanes have the same columns, the next but one the same rows: both are read in
// two passes.

// N numbers of shared memory in registers.
template <u32 N>
struct Row {
    float4 fours[N / 4];

    __device__ __forceinline__ void load(const float* from) {
#pragma unroll
        for (u32 j = 0; j < N / 4; ++j) fours[j] = shared4(from + 4 * j);
    }

    // Of 4·N every fourth four, from the first on: the rows of Columns.
    __device__ __forceinline__ void load_quarter(Place from) {
#pragma unroll
        for (u32 j = 0; j < N / 4; ++j) fours[j] = shared4(from + 16 * j);
    }
};

// What a thread of 4·HP has: columns [four, four + 4) of a gate, every fourth four of the rows.
template <u32 HP>
struct Columns {
    u32 quarter, gate, four;

    __device__ __forceinline__ explicit Columns(u32 thread) : quarter(thread % 2 + thread / 4 % 2 * 2) {
        const u32 group = thread / 8 * 2 + thread / 2 % 2;
        gate = group / (HP / 4);
        four = group % (HP / 4) * 4;
    }

    // Row k of the thread's N is this one and so many further. (No bit is in both.)
    __device__ __forceinline__ u32 first_row() const { return 4 * quarter; }
    static __device__ __forceinline__ constexpr u32 further(u32 k) { return k / 4 * 16 + k % 4; }
};

// The sums of a thread's N rows.
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

    __device__ __forceinline__ float4 four(u32 k) const { return make_float4(sum[k][0], sum[k][1], sum[k][2], sum[k][3]); }

    // Whether all are finite; what is padded is 0, or like the rest where h or x is not finite.
    __device__ __forceinline__ bool all_finite() const {
        bool finite = true;
#pragma unroll
        for (u32 k = 0; k < N; ++k) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) finite &= is_finite(sum[k][i]);
        }
        return finite;
    }
};

// ---------------------------------------------------------------- gates

// A unit's four gates, in each of its lanes.
__device__ __forceinline__ GateValues exchange(float own) {
    const u32 unit = threadIdx.x % WARP_UNITS;
    return {__shfl_sync(ALL_LANES, own, unit + GATE_I * WARP_UNITS), __shfl_sync(ALL_LANES, own, unit + GATE_F * WARP_UNITS),
            __shfl_sync(ALL_LANES, own, unit + GATE_G * WARP_UNITS), __shfl_sync(ALL_LANES, own, unit + GATE_O * WARP_UNITS)};
}

// One time step back for the thread's gate: the gradient by its pre-activation, and dc_now from the state to the one before, but
// not of gate o, whose gradient is dh·slope where the others' is (dh·state + dc)·slope: with 1 and −0 in their places, which are
// there before dh is.
__device__ __forceinline__ float gate_backward(u32 gate, float slope, float state, float f, float dh_now, float& dc_now) {
    const float all = fmaf(dh_now, gate == GATE_O ? 1.0f : state, gate == GATE_O ? -0.0f : dc_now);
    dc_now = all * f;
    return all * slope;
}
