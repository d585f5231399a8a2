// The tokens of each batch in the order of their ids, so that whoever owns a row of the embedding table finds the row's tokens
// side by side. They depend on data and order alone, not on parameters: one launch serves a whole table of steps.
// A row of the table belongs to bucket row % buckets, as its row / buckets: so the most frequent words, which have the lowest ids,
// belong to different buckets. The key of an id is (id % buckets)·owned + id / buckets.
//   sorted[step]   the pairs (key, token) of the step's batch by key, and among equals by token. Token s·rows + b is time step s of
//                  row b of the batch.
//   tokens[step]   for time step s of row b of the batch, at b·(t+1) + s: (id, which of the sorted pairs it is); behind them, at
//                  b·(t+1) + t, (the row's label, 0). Zeros of rows that the step has not: fused_step reads before it knows.
//   begins[step]   begins[k] = how many tokens have a key below k·owned, k <= buckets: bucket k is sorted[begins[k] .. begins[k+1]]
// Shapes: x [N,T], labels [N], order [N], sorted tokens [steps,capacity], begins [steps,buckets+1].
// A radix sort by single bits, lowest first, each pass stable: a warp takes one run of tokens, counts its zeros, and writes zeros
// and ones behind those of the warps before it. `bits` is even, so that the last pass ends in `sorted`; the others
// use `tokens`, too.
// Launch: a block of SORT_THREADS a step.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(SORT_THREADS)
sort_tokens(const u32* x, const u32* labels, const u32* order, const Step* steps, uint2* sorted, uint2* tokens, u32* begins, u32 t,
            u32 bits, u32 owned, u32 buckets, u64 capacity) {
    constexpr u32 WARPS = SORT_THREADS / WARP;
    __shared__ u32 zeros_of[WARPS];
    const u32 lane = threadIdx.x % WARP;
    const u32 warp = threadIdx.x / WARP;
    const u32 start = steps[blockIdx.x].batch_start;
    const u32 rows = steps[blockIdx.x].rows;
    const u32 n = rows * t;
    sorted += blockIdx.x * capacity;
    tokens += blockIdx.x * capacity;
    begins += (u64)blockIdx.x * (buckets + 1);

    for (u32 token = threadIdx.x; token < n; token += SORT_THREADS) {
        const u32 id = x[(u64)order[start + token % rows] * t + token / rows];
        sorted[token] = make_uint2(id % buckets * owned + id / buckets, token);
    }
    __syncthreads();

    // The warp's run: whole groups of 32.
    const u32 run = ((n + SORT_THREADS - 1) / SORT_THREADS) * WARP;
    const u32 begin = min(n, warp * run);
    const u32 end = min(n, begin + run);
    for (u32 bit = 0; bit < bits; ++bit) {
        const uint2* from = bit % 2 == 0 ? sorted : tokens;
        uint2* to = bit % 2 == 0 ? tokens : sorted;
        u32 zeros = 0;
        for (u32 group = begin; group < end; group += WARP) {
            const u32 i = group + lane;
            zeros += __popc(__ballot_sync(ALL_LANES, i < end && !(from[i].x >> bit & 1)));
        }
        if (lane == 0) zeros_of[warp] = zeros;
        __syncthreads();
        u32 zeros_before = 0;
        u32 all_zeros = 0;
        for (u32 other = 0; other < WARPS; ++other) {
            zeros_before += other < warp ? zeros_of[other] : 0;
            all_zeros += zeros_of[other];
        }
        u32 zero_at = zeros_before;
        u32 one_at = all_zeros + begin - zeros_before;
        for (u32 group = begin; group < end; group += WARP) {
            const u32 i = group + lane;
            const uint2 pair = i < end ? from[i] : make_uint2(0, 0);
            const bool one = pair.x >> bit & 1;
            const u32 zero_lanes = __ballot_sync(ALL_LANES, i < end && !one);
            const u32 one_lanes = __ballot_sync(ALL_LANES, i < end && one);
            const u32 below = (1u << lane) - 1;
            if (i < end) to[one ? one_at + __popc(one_lanes & below) : zero_at + __popc(zero_lanes & below)] = pair;
            zero_at += __popc(zero_lanes);
            one_at += __popc(one_lanes);
        }
        __syncthreads();
    }

    for (u32 i = threadIdx.x; i < n; i += SORT_THREADS) {
        const uint2 pair = sorted[i];
        const u32 id = pair.x % owned * buckets + pair.x / owned;
        tokens[pair.y % rows * (t + 1) + pair.y / rows] = make_uint2(id, i);
    }
    for (u32 row = threadIdx.x; row < rows; row += SORT_THREADS) {
        tokens[row * (t + 1) + t] = make_uint2(labels[order[start + row]], 0);
    }
    for (u64 i = rows * (t + 1) + threadIdx.x; i < capacity; i += SORT_THREADS) tokens[i] = make_uint2(0, 0);

    // Where a bucket begins, between two tokens (or before the first, or after the last).
    for (u32 i = threadIdx.x; i <= n; i += SORT_THREADS) {
        const u32 first = i == 0 ? 0 : sorted[i - 1].x / owned + 1;
        const u32 last = i == n ? buckets : sorted[i].x / owned;
        for (u32 bucket = first; bucket <= last; ++bucket) begins[bucket] = i;
    }
}
