// What the kernels of a whole sequence share (lstm_sequence.cu, fused.cu): how 4·HP threads divide a row's work.
//
// HP is H padded to a multiple of 32; what is padded holds zeros, so that no sum depends on it. Thread tid belongs to unit tid/4;
// tid%4 is its gate, so that the four gates of a unit lie in one warp and are exchanged by shuffles.
#pragma once
#include "half.cuh"

// A row of 4·HP numbers by gates in shared memory. Gates are 8 numbers further apart than HP: the eight units and four gates of a
// warp fall on 32 different banks.
template <u32 HP>
struct GateRow {
    static constexpr u32 GATE = HP + 8;
    static constexpr u32 ROW = GATES * GATE;
};

// chain[i] += left[j].i · right[4j + i] over all j: four chains of fmaf.
template <u32 N>
__device__ __forceinline__ void add_product(const float4* left, const float (&right)[N], float (&chain)[4]) {
#pragma unroll
    for (u32 j = 0; j < N / 4; ++j) {
        const float4 part = shared4(left + j);
        chain[0] = fmaf(part.x, right[4 * j + 0], chain[0]);
        chain[1] = fmaf(part.y, right[4 * j + 1], chain[1]);
        chain[2] = fmaf(part.z, right[4 * j + 2], chain[2]);
        chain[3] = fmaf(part.w, right[4 * j + 3], chain[3]);
    }
}

// A slice of Uᵀ: of row `unit` of U, padded to 4·HP columns by gates, slice s of four has the columns 16j + 4s + i. Four of them
// never lie in two gates. This is where group j of slice s lies in a GateRow, in float4.
template <u32 HP>
__device__ __forceinline__ u32 slice_place(u32 j, u32 slice) {
    return 16 * j / HP * (GateRow<HP>::GATE / 4) + 16 * j % HP / 4 + slice;
}

// Group j of slice s of row `unit` of U in memory. One load where H is a multiple of 4 (U begins at a multiple of 16 bytes).
template <u32 HP, typename T>
__device__ __forceinline__ float4 slice_of(const T* u, u32 unit, u32 hidden, u32 j, u32 slice) {
    const u32 gate = 16 * j / HP;
    const u32 other = 16 * j % HP + 4 * slice;
    if (unit >= hidden) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return load4(u + ((u64)unit * GATES + gate) * hidden, other, hidden, hidden % 4 == 0);
}

// The first N elements of the thread's slice.
template <u32 HP, u32 N, typename T>
__device__ __forceinline__ void load_slice(const T* u, u32 unit, u32 hidden, u32 slice, float (&kept)[N]) {
#pragma unroll
    for (u32 j = 0; j < N / 4; ++j) {
        const float4 part = slice_of<HP>(u, unit, hidden, j, slice);
        kept[4 * j + 0] = part.x;
        kept[4 * j + 1] = part.y;
        kept[4 * j + 2] = part.z;
        kept[4 * j + 3] = part.w;
    }
}

// chain[i] += dpre · the slice, whose first N elements these are.
template <u32 HP, u32 N>
__device__ __forceinline__ void add_slice(const float4* dpre, u32 slice, const float (&kept)[N], float (&chain)[4]) {
#pragma unroll
    for (u32 j = 0; j < N / 4; ++j) {
        const float4 part = shared4(dpre + slice_place<HP>(j, slice));
        chain[0] = fmaf(part.x, kept[4 * j + 0], chain[0]);
        chain[1] = fmaf(part.y, kept[4 * j + 1], chain[1]);
        chain[2] = fmaf(part.z, kept[4 * j + 2], chain[2]);
        chain[3] = fmaf(part.w, kept[4 * j + 3], chain[3]);
    }
}

// Chains, then the four slices of the unit: (0+1)+(2+3) both times. All four lanes get the sum.
__device__ __forceinline__ float sum_slices(const float (&chain)[4]) {
    const float sum = (chain[0] + chain[1]) + (chain[2] + chain[3]);
    // All three at once.
    const float by_1 = __shfl_xor_sync(ALL_LANES, sum, 1);
    const float by_2 = __shfl_xor_sync(ALL_LANES, sum, 2);
    const float by_3 = __shfl_xor_sync(ALL_LANES, sum, 3);
    return (sum + by_1) + (by_2 + by_3);
}

// sum[4j + i] += left[j].i · right: a thread's column of an outer product.
template <u32 N>
__device__ __forceinline__ void add_column(const float4* left, float right, float (&sum)[N]) {
#pragma unroll
    for (u32 j = 0; j < N / 4; ++j) {
        const float4 part = shared4(left + j);
        sum[4 * j + 0] = fmaf(part.x, right, sum[4 * j + 0]);
        sum[4 * j + 1] = fmaf(part.y, right, sum[4 * j + 1]);
        sum[4 * j + 2] = fmaf(part.z, right, sum[4 * j + 2]);
        sum[4 * j + 3] = fmaf(part.w, right, sum[4 * j + 3]);
    }
}

// A unit's four gates, in each of its lanes.
__device__ __forceinline__ GateValues exchange(float own) {
    return {__shfl_sync(ALL_LANES, own, GATE_I, GATES), __shfl_sync(ALL_LANES, own, GATE_F, GATES),
            __shfl_sync(ALL_LANES, own, GATE_G, GATES), __shfl_sync(ALL_LANES, own, GATE_O, GATES)};
}

// One time step back for the thread's gate: the gradient by its pre-activation, and dc_now from the state to the one before, but
// not of gate o, whose gradient is dh·slope where the others' is (dh·state + dc)·slope: with 1 and −0 in their places, which are
// there before dh is.
__device__ __forceinline__ float gate_backward(u32 gate, float slope, float state, float f, float dh_now, float& dc_now) {
    const float all = fmaf(dh_now, gate == GATE_O ? 1.0f : state, gate == GATE_O ? -0.0f : dc_now);
    dc_now = all * f;
    return all * slope;
}
