// Embedding.
//   forward    out[i] = table[ids[i]]                             a thread FOURS groups of four elements of out [n,E] (half.cuh)
//   backward   dtable[v] (+)= sum of dout[i] over the i with ids[i] = v, in the order of i
//   _bf16 _f16  table and out are stored in 16 bits
// Shapes: table dtable [V,E], ids [n], out dout [n,E]. Every id is below V: the host has checked.
//
// Backward is an owner-computes scatter without atomics: a block owns EMBEDDING_ROWS rows of the table, reads all ids in chunks,
// keeps the tokens that are its own in their order, and each of its warps sums the tokens of one row at a time, a lane a column.
#include "half.cuh"

// A group of four is of one token: rows of E that is no multiple of 4 end in a smaller one. Index: what groups are counted in; of 32
// bits also E is a multiple of 4, and table and out are aligned. (A division of 64 bits takes many times as long.)
template <typename Index, typename T>
__device__ __forceinline__ void gather_rows(const T* table, const u32* ids, T* out, u32 n, u32 e) {
    constexpr bool ALIGNED = sizeof(Index) == sizeof(u32);
    const u32 quads = (e + 3) / 4;
    Index token[FOURS];
    u32 col[FOURS], id[FOURS];
    float4 row[FOURS];
    // All ids, then all rows: none is waited for before the others are asked for.
#pragma unroll
    for (u32 j = 0; j < FOURS; ++j) {
        const Index i = (Index)(four_at(j, ELEMENT_THREADS) / 4);
        token[j] = i / quads;
        col[j] = (u32)(i - token[j] * quads) * 4;
        id[j] = token[j] < n ? ids[token[j]] : 0;
    }
#pragma unroll
    for (u32 j = 0; j < FOURS; ++j) row[j] = load4(table + (u64)id[j] * e, col[j], token[j] < n ? e : 0, ALIGNED);
#pragma unroll
    for (u32 j = 0; j < FOURS; ++j) store4(out + (u64)token[j] * e, col[j], token[j] < n ? e : 0, ALIGNED, row[j]);
}

template <typename T>
__device__ __forceinline__ void gather_rows(const T* table, const u32* ids, T* out, u32 n, u32 e) {
    // The last group that a thread of the grid may have.
    const u64 groups = (u64)gridDim.x * FOURS * ELEMENT_THREADS;
    if (e % 4 == 0 && is_aligned(table) && is_aligned(out) && groups <= 0xffffffffu) {
        gather_rows<u32>(table, ids, out, n, e);
    } else {
        gather_rows<u64>(table, ids, out, n, e);
    }
}

#define FORWARD(name, T)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) name(const T* table, const u32* ids, T* out, u32 n, u32 e) {  \
        gather_rows(table, ids, out, n, e);                                                                                     \
    }
FORWARD(embedding_forward, float)
FORWARD(embedding_forward_bf16, bf16)
FORWARD(embedding_forward_f16, f16)

constexpr u32 EMBEDDING_WARPS = EMBEDDING_THREADS / WARP;
// Tokens a warp reads of each chunk, and tokens of a chunk.
constexpr u32 WARP_TOKENS = 4 * WARP;
constexpr u32 CHUNK_TOKENS = EMBEDDING_WARPS * WARP_TOKENS;

// assign: every element of dtable is assigned, 0 where no token is; else the sums are added to what it holds.
extern "C" __global__ void __launch_bounds__(EMBEDDING_THREADS)
embedding_backward(const u32* ids, const float* dout, float* dtable, u32 n, u32 v, u32 e, u32 assign) {
    __shared__ u32 own_token[CHUNK_TOKENS];
    __shared__ u32 own_row[CHUNK_TOKENS];
    __shared__ u32 warp_count[EMBEDDING_WARPS];
    const u32 lane = threadIdx.x % WARP;
    const u32 warp = threadIdx.x / WARP;
    const u32 first_row = blockIdx.x * EMBEDDING_ROWS;
    const u32 rows = min(EMBEDDING_ROWS, v - first_row);

    // At least one chunk, even an empty one: where rows are assigned, they are assigned in the first.
    for (u32 chunk = 0; chunk == 0 || chunk < n; chunk += CHUNK_TOKENS) {
        // The block's own tokens among this chunk's: a bit a lane for each of the warp's four groups.
        u32 mine[4];
        u32 row_of[4];
        u32 count = 0;
#pragma unroll
        for (u32 group = 0; group < 4; ++group) {
            const u32 token = chunk + warp * WARP_TOKENS + group * WARP + lane;
            row_of[group] = token < n ? ids[token] - first_row : EMBEDDING_ROWS;  // below first_row: wraps to a large number
            mine[group] = __ballot_sync(ALL_LANES, row_of[group] < rows);
            count += __popc(mine[group]);
        }
        if (lane == 0) warp_count[warp] = count;
        __syncthreads();
        u32 at = 0;
        u32 total = 0;
#pragma unroll
        for (u32 other = 0; other < EMBEDDING_WARPS; ++other) {
            at += other < warp ? warp_count[other] : 0;
            total += warp_count[other];
        }
#pragma unroll
        for (u32 group = 0; group < 4; ++group) {
            if (mine[group] >> lane & 1) {
                const u32 place = at + __popc(mine[group] & ((1u << lane) - 1));
                own_token[place] = chunk + warp * WARP_TOKENS + group * WARP + lane;
                own_row[place] = row_of[group];
            }
            at += __popc(mine[group]);
        }
        __syncthreads();

        const bool fresh = assign && chunk == 0;
        for (u32 row = warp; row < rows; row += EMBEDDING_WARPS) {
            for (u32 first_col = 0; first_col < e; first_col += WARP) {
                const u32 col = first_col + lane;
                float* sum_at = dtable + (u64)(first_row + row) * e + col;
                float sum = 0.0f;
                bool touched = fresh;
                for (u32 base = 0; base < total; base += WARP) {
                    const u32 place = base + lane;
                    u32 hits = __ballot_sync(ALL_LANES, place < total && own_row[place] == row);
                    if (hits == 0) continue;
                    if (!touched && col < e) sum = *sum_at;
                    touched = true;
                    while (hits) {
                        // Up to four loads in flight, then added in the tokens' order.
                        float value[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                        u32 taken = 0;
#pragma unroll
                        for (u32 k = 0; k < 4; ++k) {
                            if (hits) {
                                const u32 token = own_token[base + __ffs(hits) - 1];
                                hits &= hits - 1;
                                value[k] = col < e ? dout[(u64)token * e + col] : 0.0f;
                                taken = k + 1;
                            }
                        }
#pragma unroll
                        for (u32 k = 0; k < 4; ++k) {
                            if (k < taken) sum += value[k];
                        }
                    }
                }
                if (touched && col < e) *sum_at = sum;
            }
        }
        // The lists are written anew only after the next chunk's first barrier, which every warp reaches when it has read them.
    }
}
