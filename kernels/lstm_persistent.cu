// LSTM over a whole sequence in one launch, 128 < H <= 512: U stays in the registers of blocks that wait for each other (persistent
// kernels: Diamos et al. 2016). The equations stand in lstm_cell.cu, and every sum has the order of its kernels: the same bits.
//
// A block computes UNITS hidden units of one group of batch rows, for all time steps; the blocks of a group exchange h (forward) or
// dpre (backward) of each time step through memory, and groups never meet. Before the launch every byte of h[1..T] (of dpre) is
// 0xff: a NaN that no arithmetic gives and `publish` never stores, so whoever reads such a number knows that it has not been written
// and reads again. There is no other barrier between blocks, and no fence: a number is its own flag.
//
//   forward    warp w holds the rows k in [32w, 32w + 32) of U's columns of the block's units, two columns a lane: a piece of each sum.
//   backward   warp w holds the columns [128w, 128w + 128) of U's rows of the block's units: two rows a lane, and 32 columns, a piece.
//   Pieces pass through shared memory (backward: four of them by shuffles first) to the threads that add them up: thread tid has the
//   row tid / (4·UNITS) of the tile, and there a unit and a gate (lstm_sequence.cuh). A tile is as many rows as that makes: 2, 4 or 8.
//   _h128 _h256 _h512   for H up to that, with 4, 8 or 16 warps
//   _bf16 _f16    U, gates, h and dpre are stored in 16 bits (src/backend/precision.rs)
// Shapes: pre gates dpre [T,B,4H], h c [T+1,B,H] (row 0 the initial state), dh [T,B,H], dh_last dc_last dc0 [B,H].
// Launch: cooperative, grid (⌈H/UNITS⌉, groups of `rows` rows), block 32·warps.
#include "lstm_sequence.cuh"

constexpr u32 UNITS = PERSISTENT_UNITS;
constexpr u32 COLUMNS = GATES * UNITS;  // of U, of a block
static_assert(COLUMNS == 2 * WARP, "two columns a lane");

// ---------------------------------------------------------------- numbers that are their own flags

template <typename T>
constexpr u32 UNWRITTEN = sizeof(T) == 4 ? 0xffffffffu : 0xffffu;
// Reads of a number that has not been written before a kernel gives up: some ten seconds. Its blocks are resident together, so this
// can only be an error, and a trap is better than a GPU that hangs.
constexpr u32 MOST_READS = 1u << 24;

__device__ __forceinline__ float from_bits(const float*, u32 bits) { return __uint_as_float(bits); }
template <typename T>
__device__ __forceinline__ float from_bits(const T*, u32 bits) {
    return widen(T{(unsigned short)bits});
}

// Reads past the first-level cache, as often as it stands in the source.
__device__ __forceinline__ u32 bits_at(const float* at) {
    u32 bits;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(bits) : "l"(__cvta_generic_to_global(at)));
    return bits;
}
template <typename T>
__device__ __forceinline__ u32 bits_at(const T* at) {
    unsigned short bits;
    asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(bits) : "l"(__cvta_generic_to_global(at)));
    return bits;
}

// Four in a row, at a multiple of four.
__device__ __forceinline__ void four_bits_at(const float* at, u32 (&bits)[4]) {
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits[0]), "=r"(bits[1]), "=r"(bits[2]), "=r"(bits[3])
                 : "l"(__cvta_generic_to_global(at)));
}
template <typename T>
__device__ __forceinline__ void four_bits_at(const T* at, u32 (&bits)[4]) {
    // Four accesses of the size that numbers are stored in (PTX ISA, memory consistency model: others would be no flags).
    unsigned short x, y, z, w;
    asm volatile("ld.relaxed.gpu.global.v4.u16 {%0, %1, %2, %3}, [%4];"
                 : "=h"(x), "=h"(y), "=h"(z), "=h"(w)
                 : "l"(__cvta_generic_to_global(at)));
    bits[0] = x, bits[1] = y, bits[2] = z, bits[3] = w;
}

// Stores a number for other blocks, or nothing; no branch, which they would wait for. A NaN of whatever bits becomes NVIDIA's own.
__device__ __forceinline__ void publish_if(bool condition, float* at, float x) {
    u32 bits = __float_as_uint(x);
    if (bits == UNWRITTEN<float>) bits = 0x7fffffffu;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p st.relaxed.gpu.global.u32 [%0], %1; }" ::"l"(__cvta_generic_to_global(at)),
                 "r"(bits), "r"((u32)condition)
                 : "memory");
}
template <typename T>
__device__ __forceinline__ void publish_if(bool condition, T* at, float x) {
    u32 bits = narrow<T>(x).bits;
    if (bits == UNWRITTEN<T>) bits = 0x7fffu;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p st.relaxed.gpu.global.u16 [%0], %1; }" ::"l"(__cvta_generic_to_global(at)),
                 "h"((unsigned short)bits), "r"((u32)condition)
                 : "memory");
}

// ---------------------------------------------------------------- what both directions share

template <u32 WARPS>
struct Mapping {
    static constexpr u32 THREADS = WARPS * WARP;
    static constexpr u32 TILE = THREADS / COLUMNS;  // rows
    static constexpr u32 R = TILE < 4 ? TILE : 4;   // rows that are multiplied at a time
    static_assert(TILE % R == 0 && R % 2 == 0, "rows of a tile are multiplied R at a time");
    // Of what is added up, by turns, so that one barrier a tile is enough. Of 16 warps two would take more than 48 KiB.
    static constexpr u32 BUFFERS = WARPS < 16 ? 2 : 1;
};

// A number of R rows in shared memory.
template <u32 R>
struct __align__(4 * R) Rows {
    float of[R];
};

__device__ __forceinline__ void read_rows(const Rows<4>* at, float (&x)[4]) {
    const float4 four = shared4(at);
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
}
__device__ __forceinline__ void read_rows(const Rows<2>* at, float (&x)[2]) {
    const float2 two = shared2(at);
    x[0] = two.x, x[1] = two.y;
}

// The batch rows of this block: [first, end).
__device__ __forceinline__ void group_rows(u32 rows, u32 batch, u32& first, u32& end) {
    first = blockIdx.y * rows;
    end = min(batch, first + rows);
}

// Where number i of a piece lies in shared memory, in Rows: side by side (forward), or as lanes get them that read four numbers each
// (backward; of 32 lanes four pieces, each beginning at other banks).
constexpr u32 FOURS_PITCH = WARP + 4;
template <bool BY_FOURS>
__device__ __forceinline__ constexpr u32 place(u32 i) {
    return BY_FOURS ? i / 4 + i % 4 * FOURS_PITCH : i;
}
constexpr u32 PIECE_PITCH = WARP / 4 + 1;

// sum[a][r] = the piece's chain for weight a and row r.
template <bool BY_FOURS, u32 R>
__device__ __forceinline__ void multiply(const Rows<R>* piece, const float (&weights)[WARP][2], float (&sum)[2][R]) {
#pragma unroll
    for (u32 a = 0; a < 2; ++a) {
#pragma unroll
        for (u32 r = 0; r < R; ++r) sum[a][r] = 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < WARP; ++i) {
        float x[R];
        read_rows(piece + place<BY_FOURS>(i), x);
#pragma unroll
        for (u32 a = 0; a < 2; ++a) {
#pragma unroll
            for (u32 r = 0; r < R; ++r) sum[a][r] = fmaf(x[r], weights[i][a], sum[a][r]);
        }
    }
}

// ---------------------------------------------------------------- forward

// pre may be the array of the gates: a thread reads what it later writes.
template <u32 WARPS, typename T>
__device__ __forceinline__ void persistent_forward(const T* u, const float* pre, T* gates, T* h, float* c, u32 t, u32 batch, u32 hidden,
                                                   u32 rows) {
    constexpr u32 TILE = Mapping<WARPS>::TILE;
    constexpr u32 R = Mapping<WARPS>::R;
    __shared__ Rows<R> left[WARPS][WARP];
    constexpr u32 BUFFERS = Mapping<WARPS>::BUFFERS;
    __shared__ __align__(8) float pieces_of[BUFFERS][WARPS][TILE][COLUMNS];
    const u32 lane = threadIdx.x % WARP;
    const u32 warp = threadIdx.x / WARP;
    const u32 first_unit = blockIdx.x * UNITS;
    const u32 columns = GATES * hidden;

    // The lane's two columns belong to one unit.
    float weights[WARP][2];
    const u32 weights_unit = first_unit + lane / 2;
    const T* weights_at = u + (u64)min(warp * WARP, hidden - 1) * columns + lane % 2 * 2 * hidden + min(weights_unit, hidden - 1);
#pragma unroll
    for (u32 i = 0; i < WARP; ++i) {
        const u32 k = warp * WARP + i;
        const bool inside = k < hidden && weights_unit < hidden;
        const float first = widen(weights_at[0]), second = widen(weights_at[hidden]);
        weights[i][0] = inside ? first : 0.0f;
        weights[i][1] = inside ? second : 0.0f;
        // What lies outside reads another number and drops it.
        weights_at += k + 1 < hidden ? columns : 0;
    }

    u32 first_row, end_row;
    group_rows(rows, batch, first_row, end_row);
    const u32 tile_row = threadIdx.x / COLUMNS;
    const u32 own_unit = unit_of(threadIdx.x % COLUMNS);
    const u32 unit = first_unit + own_unit;
    const u32 gate = gate_of(threadIdx.x);
    const u32 k = warp * WARP + lane;
    const u64 state_step = (u64)batch * hidden;
    u32 turn = 0;
    for (u32 s = 0; s < t; ++s) {
        for (u32 tile = first_row; tile < end_row; tile += TILE) {
            const u32 row = tile + tile_row;
            const bool inside = row < end_row && unit < hidden;
            const u64 state = ((u64)s * batch + row) * hidden + unit;
            const u64 column = ((u64)s * batch + row) * columns + gate * hidden + unit;
            const float given = inside ? pre[column] : 0.0f;
            const float c_prev = inside ? c[state] : 0.0f;
            // Where the others wait for it: known before it is.
            T* h_to = held(h + state + state_step);
            auto& pieces = pieces_of[turn];

            const T* from = h + ((u64)s * batch + tile) * hidden + k;
#pragma unroll
            for (u32 at = 0; at < TILE; at += R) {
                u32 bits[R];
                bool waits;
                u32 reads = 0;
                do {
                    waits = false;
#pragma unroll
                    for (u32 r = 0; r < R; ++r) {
                        const bool there = k < hidden && tile + at + r < end_row;
                        bits[r] = there ? bits_at(from + (at + r) * hidden) : 0;
                        // The initial state is the caller's, whatever its bits.
                        waits |= bits[r] == UNWRITTEN<T> && s > 0;
                    }
                    if (++reads == MOST_READS) __trap();
                } while (waits);
                Rows<R> mine;
#pragma unroll
                for (u32 r = 0; r < R; ++r) mine.of[r] = from_bits(from, bits[r]);
                left[warp][lane] = mine;
                __syncwarp();
                float sum[2][R];
                multiply<false>(left[warp], weights, sum);
#pragma unroll
                for (u32 r = 0; r < R; ++r) *(float2*)&pieces[warp][at + r][2 * lane] = make_float2(sum[0][r], sum[1][r]);
                // The warp's numbers are written anew.
                __syncwarp();
            }
            __syncthreads();
            float total = given;
#pragma unroll
            for (u32 quad = 0; quad < WARPS; quad += 4) {
                const float* piece = &pieces[quad][tile_row][own_unit * GATES + gate];
                constexpr u32 NEXT = TILE * COLUMNS;
                const float sum = (piece[0] + piece[NEXT]) + (piece[2 * NEXT] + piece[3 * NEXT]);
                total = quad * WARP < hidden ? total + sum : total;
            }
            if constexpr (BUFFERS == 1) {
                // The pieces are written anew.
                __syncthreads();
            } else {
                turn ^= 1;
            }

            const float gate_value = squash(total, Squash(gate == GATE_G)).value();
            const GateValues v = exchange(gate_value);
            // All four lanes of the unit compute its state.
            const float c_now = fmaf(v.f, c_prev, v.i * v.g);
            const float h_now = squash(c_now, Squash(true)).product(v.o);
            publish_if(inside && gate == GATE_I, h_to, h_now);
            if (inside) {
                if (gate == GATE_F) c[state + state_step] = c_now;
                gates[column] = narrow<T>(gate_value);
            }
            // c is read by the unit's other lanes.
            __syncwarp();
        }
    }
}

// ---------------------------------------------------------------- backward

// Null: dh, dh_last, dc_last count as 0.
template <u32 WARPS, typename T>
__device__ __forceinline__ void persistent_backward(const T* u, const T* gates, const float* c, const float* dh, const float* dh_last,
                                                    const float* dc_last, T* dpre, float* dc0, u32 t, u32 batch, u32 hidden, u32 rows) {
    constexpr u32 TILE = Mapping<WARPS>::TILE;
    constexpr u32 R = Mapping<WARPS>::R;
    constexpr u32 PIECES = 4;  // of a warp
    __shared__ Rows<R> left[WARPS][4 * FOURS_PITCH];
    constexpr u32 BUFFERS = Mapping<WARPS>::BUFFERS;
    __shared__ float quads_of[BUFFERS][WARPS][TILE][UNITS];
    const u32 lane = threadIdx.x % WARP;
    const u32 warp = threadIdx.x / WARP;
    const u32 piece = lane / (WARP / PIECES);
    const u32 pair = lane % (WARP / PIECES);
    const u32 first_unit = blockIdx.x * UNITS;
    const u32 columns = GATES * hidden;

    float weights[WARP][2];
#pragma unroll
    for (u32 i = 0; i < WARP; i += 4) {
#pragma unroll
        for (u32 a = 0; a < 2; ++a) {
            const u32 unit = first_unit + 2 * pair + a;
            const u32 from = (warp * PIECES + piece) * WARP + i;
            const float4 four = load4(u + (u64)min(unit, hidden - 1) * columns, unit < hidden ? from : columns, columns, true);
            weights[i][a] = four.x;
            weights[i + 1][a] = four.y;
            weights[i + 2][a] = four.z;
            weights[i + 3][a] = four.w;
        }
    }

    u32 first_row, end_row;
    group_rows(rows, batch, first_row, end_row);
    const u32 tile_row = threadIdx.x / COLUMNS;
    const u32 own_unit = unit_of(threadIdx.x % COLUMNS);
    const u32 unit = first_unit + own_unit;
    const u32 gate = gate_of(threadIdx.x);
    const u32 k = (warp * WARP + lane) * 4;
    const u64 state_step = (u64)batch * hidden;
    u32 turn = 0;
    for (u32 s = t; s-- > 0;) {
        const bool last = s + 1 == t;
        for (u32 tile = first_row; tile < end_row; tile += TILE) {
            const u32 row = tile + tile_row;
            const bool inside = row < end_row && unit < hidden;
            const u64 own = (u64)row * hidden + unit;
            const u64 state = s * state_step + own;
            const u64 column = ((u64)s * batch + row) * columns + gate * hidden + unit;
            // What no other block is waited for.
            const float value = inside ? widen(gates[column]) : 0.0f;
            const float c_prev = inside ? c[state] : 0.0f;
            const float tanh_c = strict_tanh(inside ? c[state + state_step] : 0.0f);
            const float* dc = last ? dc_last : dc0;
            float dc_now = inside && dc ? dc[own] : 0.0f;
            const float dh_own = inside && dh ? dh[state] : 0.0f;
            const float dh_more = inside && last && dh_last ? dh_last[own] : 0.0f;
            const GateValues v = exchange(value);
            const float slope = gate_slope(gate, GateBits(gate), value, v, c_prev, tanh_c);
            const float of_state = state_slope(v.o, tanh_c);

            T* dpre_to = held(dpre + column);

            float total = 0.0f;
            if (!last) {
                auto& quads = quads_of[turn];
                const T* from = dpre + ((u64)(s + 1) * batch + tile) * columns + k;
#pragma unroll
                for (u32 at = 0; at < TILE; at += R) {
                    u32 bits[R][4];
                    bool waits;
                    u32 reads = 0;
                    do {
                        waits = false;
#pragma unroll
                        for (u32 r = 0; r < R; ++r) {
                            const bool there = k < columns && tile + at + r < end_row;
                            bits[r][0] = bits[r][1] = bits[r][2] = bits[r][3] = 0;
                            if (there) four_bits_at(from + (at + r) * columns, bits[r]);
#pragma unroll
                            for (u32 i = 0; i < 4; ++i) waits |= bits[r][i] == UNWRITTEN<T>;
                        }
                        if (++reads == MOST_READS) __trap();
                    } while (waits);
#pragma unroll
                    for (u32 i = 0; i < 4; ++i) {
                        Rows<R> mine;
#pragma unroll
                        for (u32 r = 0; r < R; ++r) mine.of[r] = from_bits(from, bits[r][i]);
                        left[warp][i * FOURS_PITCH + piece * PIECE_PITCH + pair] = mine;
                    }
                    __syncwarp();
                    float sum[2][R];
                    multiply<true>(left[warp] + piece * PIECE_PITCH, weights, sum);
                    // (0+1)+(2+3): of each pair of lanes one keeps the one half of their sums, the other the other.
                    const bool odd = piece % 2 != 0;
                    const bool high = piece / 2 != 0;
                    float half[R];
#pragma unroll
                    for (u32 r = 0; r < R; ++r) {
                        const float sent = __shfl_xor_sync(ALL_LANES, odd ? sum[0][r] : sum[1][r], WARP / PIECES);
                        half[r] = (odd ? sum[1][r] : sum[0][r]) + sent;
                    }
#pragma unroll
                    for (u32 r = 0; r < R / 2; ++r) {
                        const float sent = __shfl_xor_sync(ALL_LANES, high ? half[r] : half[r + R / 2], 2 * WARP / PIECES);
                        const float quad = (high ? half[r + R / 2] : half[r]) + sent;
                        quads[warp][at + (high ? R / 2 : 0) + r][2 * pair + (odd ? 1 : 0)] = quad;
                    }
                    // The warp's numbers are written anew.
                    __syncwarp();
                }
                __syncthreads();
#pragma unroll
                for (u32 w = 0; w < WARPS; ++w) {
                    total += quads[w][tile_row][own_unit];
                }
                if constexpr (BUFFERS == 1) {
                    // The sums are written anew.
                    __syncthreads();
                } else {
                    turn ^= 1;
                }
            }
            if (dh) total += dh_own;
            if (last && dh_last) total += dh_more;
            const float d = gate_backward(gate, slope, of_state, v.f, total, dc_now);
            publish_if(inside, dpre_to, d);
            if (inside && gate == GATE_I) dc0[own] = dc_now;
            // dc0 is read by the unit's other lanes.
            __syncwarp();
        }
    }
}

#define PERSISTENT(size, warps, suffix, T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(Mapping<warps>::THREADS, 1)                                                    \
    lstm_persistent_forward_##size##suffix(const T* u, const float* pre, T* gates, T* h, float* c, u32 t, u32 batch,            \
                                           u32 hidden, u32 rows) {                                                              \
        persistent_forward<warps>(u, pre, gates, h, c, t, batch, hidden, rows);                                                 \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(Mapping<warps>::THREADS, 1)                                                    \
    lstm_persistent_backward_##size##suffix(const T* u, const T* gates, const float* c, const float* dh, const float* dh_last,  \
                                            const float* dc_last, T* dpre, float* dc0, u32 t, u32 batch, u32 hidden,            \
                                            u32 rows) {                                                                         \
        persistent_backward<warps>(u, gates, c, dh, dh_last, dc_last, dpre, dc0, t, batch, hidden, rows);                       \
    }
PERSISTENT(h128, 4, , float)
PERSISTENT(h128, 4, _bf16, bf16)
PERSISTENT(h128, 4, _f16, f16)
PERSISTENT(h256, 8, , float)
PERSISTENT(h256, 8, _bf16, bf16)
PERSISTENT(h256, 8, _f16, f16)
PERSISTENT(h512, 16, , float)
PERSISTENT(h512, 16, _bf16, bf16)
PERSISTENT(h512, 16, _f16, f16)
