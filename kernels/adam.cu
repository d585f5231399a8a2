// Adam in Keras' form over the whole arena (Kingma & Ba 2015), the sums that feed it, and clipping by the global norm.
//   g = gradient·scale                          scale: clipping; 1 without
//   p −= decay·p                                decoupled, decay = lr·weight_decay
//   m += (1−beta1)·(g−m);  v += (1−beta2)·(g²−v);  p −= alpha·m/(sqrt(v)+eps)
// alpha and decay stand in the table of steps, at the cursor: a captured launch takes the next step each time. An element whose
// gradient and moments are all 0 is left alone: its update would be p − alpha·0/(0+eps).
//   adam_step          the last kernel of a training step: all gradients are summed on the way, each in one fixed order, and none
//                      is written anywhere. Blocks by their number, ADAM_THREADS threads each:
//                        0            metrics: a warp takes the batch's mean loss and hits; then the cursor moves on
//                        layer        a thread an element of W, U, b: the sum of the rows' (or slices') partials, p = 0, 1, …
//                        dense        a warp an element of W [H,C], b [C]: lanes stride over the batch, then a fixed tree
//                        embedding    (bucket, tile of EMBEDDING_TILE columns): a thread owns four columns of a row of the table and
//                                     sums its tokens' dx in the tokens' order; they lie side by side in `sorted` (tokens.cu), and so
//                                     does dx itself after a fused step (by_rows)
//   adam_step_bf16     also writes each parameter that it changes to a copy, rounded to 16 bits: stored [n], as params
//     adam_step_f16   the same; gradients are those of a scaled loss, and a step that is skipped changes metrics and cursor alone
//   adam               four elements a thread, g = grads[i]·scale
//     _bf16 _f16       with the copy, and a step that is skipped
//   reduce_partials    out[i] (+)= sum over p of partials[p·stride + i]
//   gradient_norm      sums[block] = the block's share of the sum of g², in f64 and a fixed order; NORM_BLOCKS blocks
//   clip_scale         scale = clip/norm where norm > clip > 0, else 1; a NaN gradient makes it NaN; with scaling (f16) the norm is
//                      that of the gradients of the loss itself, and scale takes the others to them; one warp
// Shapes: params m v grads [n]: in adam_step table [V,E] first, then, from a multiple of 4 on, the layer and the dense part.
#include "adam.cuh"
#include "cross_entropy.cuh"

// How many groups of four columns a tile has, at most EMBEDDING_TILE / 4, and division by it of numbers below STAGED_QUADS.
struct Quads {
    u32 count, inverse;

    __device__ __forceinline__ explicit Quads(u32 e) : count(min((e + 3) / 4, EMBEDDING_TILE / 4)) {
        // Of 32 bits, as the compiler sees it: for a division of 16 it calls a function, before which all that is on its way must arrive.
        asm("" : "+r"(count));
        // Too large by less than 1 in 65536: times STAGED_QUADS, less than 1 in `count`.
        inverse = 65535 / count + 1;
    }

    __device__ __forceinline__ u32 divide(u32 n) const { return n * inverse >> 16; }
};
static_assert(STAGED_QUADS * (EMBEDDING_TILE / 4) <= 65536 && ADAM_THREADS <= STAGED_QUADS, "what Quads can divide");

// The sum of the four columns' gradients over the tokens of a row, in their order; `from` and `to` bound the bucket's tokens.
// A chunk of tokens at a time comes to shared memory: a row with many tokens would wait for each of them.
__device__ __forceinline__ float4 sum_tokens(const uint2* sorted, u32 from, u32 to, const float* dx, u32 e, u32 first_key, u32 rows,
                                             u32 row, u32 first_col, u32 quad, const Quads& quads, bool placed) {
    __shared__ __align__(16) float4 staged[STAGED_QUADS];
    __shared__ u32 keys[STAGED_QUADS];
    __shared__ u32 row_begin[ADAM_THREADS];
    __shared__ u32 row_end[ADAM_THREADS];
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const u32 most = quads.divide(STAGED_QUADS - 1);
    for (u32 first = from; first < to; first += most) {
        const u32 count = min(most, to - first);
        const auto part_of = [&](u32 i) {
            const u32 at = quads.divide(i);
            const u64 token = placed ? first + at : sorted[first + at].y;
            return load4(dx + token * e, first_col + (i - at * quads.count) * 4, e, e % 4 == 0);
        };
        // The thread's first key and dx are asked for together.
        u32 key = 0;
        float4 part = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (threadIdx.x < count) key = sorted[first + threadIdx.x].x;
        if (threadIdx.x < count * quads.count) part = part_of(threadIdx.x);
        row_begin[threadIdx.x] = 0;
        row_end[threadIdx.x] = 0;
        if (threadIdx.x < count) keys[threadIdx.x] = key;
        if (threadIdx.x < count * quads.count) staged[threadIdx.x] = part;
#pragma unroll 1
        for (u32 i = threadIdx.x + ADAM_THREADS; i < count; i += ADAM_THREADS) keys[i] = sorted[first + i].x;
#pragma unroll 1
        for (u32 i = threadIdx.x + ADAM_THREADS; i < count * quads.count; i += ADAM_THREADS) staged[i] = part_of(i);
        __syncthreads();
        for (u32 i = threadIdx.x; i < count; i += ADAM_THREADS) {
            const u32 own = keys[i];
            if (i == 0 || keys[i - 1] != own) row_begin[own - first_key] = i;
            if (i + 1 == count || keys[i + 1] != own) row_end[own - first_key] = i + 1;
        }
        __syncthreads();
        const u32 end = row < rows ? row_end[row] : 0;
        for (u32 i = row < rows ? row_begin[row] : 0; i < end; ++i) {
            const float4 next = staged[i * quads.count + quad];
            sum.x += next.x;
            sum.y += next.y;
            sum.z += next.z;
            sum.w += next.w;
        }
        if (first + most < to) __syncthreads();
    }
    return sum;
}

// The kernel of the same name; T: what the copy of the parameters is stored in, float if there is none.
template <typename T>
__device__ __forceinline__ void
step_all(const Step* steps, u32* cursor, float* params, float* m, float* v, const float* dx, const uint2* sorted, const u32* begins,
          const float* partials, const T* h_last, const float* dlogits, const float* loss, const float* hits, MetricSums* sums,
          u32 vocab, u32 e, u32 owned, u32 buckets, u64 capacity, u32 layer_begin, u32 layer_blocks, u32 dense_begin,
          u32 dense_blocks, u32 hidden, u32 classes, u64 stride, u32 most_partials, u32 by_rows, float one_minus_beta1,
          float one_minus_beta2, float eps, T* stored, const Scaling* scaling) {
    // By anew(last): what does not depend on it is asked for while it is on its way.
    const u32 last = cursor[CURSOR_LAST];
    u32 block = blockIdx.x;
    if (block == 0) {
        if (threadIdx.x >= WARP) return;
        const u32 at = anew(last);
        const u32 rows = steps[at].rows;
        const BatchMean batch = batch_mean(loss, hits, 0, rows);
        if (threadIdx.x != 0) return;
        if (rows > 0) add_batch(sums, batch, rows);
        cursor[CURSOR_STEP] = at + 1;
        return;
    }
    block -= 1;
    [[maybe_unused]] float unscale = 1.0f;
    if constexpr (SCALES<T>) {
        if (!scaling->done) return;
        unscale = scaling->inverse;
    }
    // Once everything else has been asked for.
    const auto rule = [&](Step step) {
        if constexpr (SCALES<T>) step.alpha = scaling->alpha;
        return update_of(step, one_minus_beta1, one_minus_beta2, eps, 1.0f);
    };
    if (block < layer_blocks) {
        const u32 i = block * ADAM_THREADS + threadIdx.x;
        if (i >= dense_begin - layer_begin) return;
        const u64 place = (u64)layer_begin + i;
        Element x(params, m, v, place);
        const Step step = steps[anew(last)];
        const u32 count = by_rows ? min(step.rows, most_partials) : most_partials;
        float g = sum_partials<32>(partials + i, count, stride);
        if constexpr (SCALES<T>) g *= unscale;
        update_at(rule(step), g, x, params, m, v, stored, place);
        return;
    }
    block -= layer_blocks;
    if (block < dense_blocks) {
        const u32 i = block * (ADAM_THREADS / WARP) + threadIdx.x / WARP;
        if (i >= (hidden + 1) * classes) return;
        const u32 lane = threadIdx.x % WARP;
        Element x(params, m, v, (u64)dense_begin + i);
        const Step step = steps[anew(last)];
        float sum = sum_dense(h_last, dlogits, i, step.rows, hidden, classes);
        if constexpr (SCALES<T>) sum *= unscale;
        if (lane == 0) update_at(rule(step), sum, x, params, m, v, stored, (u64)dense_begin + i);
        return;
    }
    block -= dense_blocks;
    const u32 bucket = block % buckets;
    const u32 first_col = block / buckets * EMBEDDING_TILE;
    const Quads quads(e);
    // Rows bucket, bucket + buckets, … of the table, as tokens.cu deals them out.
    const u32 owned_rows = min(owned, (vocab - bucket + buckets - 1) / buckets);
    const u32 row = quads.divide(threadIdx.x);
    const u32 quad = threadIdx.x - row * quads.count;
    const u32 col = first_col + quad * 4;
    const bool owns = row < owned_rows && col < e;
    const u64 base = ((u64)row * buckets + bucket) * e;
    const bool aligned = e % 4 == 0;
    float4 p = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4 mean = p;
    float4 square = p;
    if (owns) {
        p = load4(params + base, col, e, aligned);
        mean = load4(m + base, col, e, aligned);
        square = load4(v + base, col, e, aligned);
    }
    const u32 at = anew(last);
    const u32* bounds = begins + (u64)at * (buckets + 1) + bucket;
    sorted += at * capacity;
    const u32 from = bounds[0];
    const u32 to = bounds[1];
    const Step step = steps[at];
    float4 g = sum_tokens(sorted, from, to, dx, e, bucket * owned, owned_rows, row, first_col, quad, quads, by_rows);
    if constexpr (SCALES<T>) g = make_float4(g.x * unscale, g.y * unscale, g.z * unscale, g.w * unscale);
    const Update k = rule(step);
    if (!owns || stays(k, g, mean, square)) return;
    update_four(k, g, p, mean, square, params + base, m + base, v + base, stored + base, col, e, aligned);
}

// Two blocks a multiprocessor: left to choose, the compiler takes fewer registers and spills.
extern "C" __global__ void __launch_bounds__(ADAM_THREADS, 2)
adam_step(const Step* steps, u32* cursor, float* params, float* m, float* v, const float* dx, const uint2* sorted, const u32* begins,
          const float* partials, const float* h_last, const float* dlogits, const float* loss, const float* hits, MetricSums* sums,
          u32 vocab, u32 e, u32 owned, u32 buckets, u64 capacity, u32 layer_begin, u32 layer_blocks, u32 dense_begin,
          u32 dense_blocks, u32 hidden, u32 classes, u64 stride, u32 most_partials, u32 by_rows, float one_minus_beta1,
          float one_minus_beta2, float eps) {
    step_all<float>(steps, cursor, params, m, v, dx, sorted, begins, partials, h_last, dlogits, loss, hits, sums, vocab, e, owned,
                    buckets, capacity, layer_begin, layer_blocks, dense_begin, dense_blocks, hidden, classes, stride, most_partials,
                    by_rows, one_minus_beta1, one_minus_beta2, eps, nullptr, nullptr);
}

extern "C" __global__ void __launch_bounds__(ADAM_THREADS, 2)
adam_step_bf16(const Step* steps, u32* cursor, float* params, float* m, float* v, const float* dx, const uint2* sorted,
               const u32* begins, const float* partials, const bf16* h_last, const float* dlogits, const float* loss,
               const float* hits, MetricSums* sums, u32 vocab, u32 e, u32 owned, u32 buckets, u64 capacity, u32 layer_begin,
               u32 layer_blocks, u32 dense_begin, u32 dense_blocks, u32 hidden, u32 classes, u64 stride, u32 most_partials,
               u32 by_rows, float one_minus_beta1, float one_minus_beta2, float eps, bf16* stored) {
    step_all<bf16>(steps, cursor, params, m, v, dx, sorted, begins, partials, h_last, dlogits, loss, hits, sums, vocab, e, owned,
                   buckets, capacity, layer_begin, layer_blocks, dense_begin, dense_blocks, hidden, classes, stride, most_partials,
                   by_rows, one_minus_beta1, one_minus_beta2, eps, stored, nullptr);
}

extern "C" __global__ void __launch_bounds__(ADAM_THREADS, 2)
adam_step_f16(const Step* steps, u32* cursor, float* params, float* m, float* v, const float* dx, const uint2* sorted,
              const u32* begins, const float* partials, const f16* h_last, const float* dlogits, const float* loss,
              const float* hits, MetricSums* sums, u32 vocab, u32 e, u32 owned, u32 buckets, u64 capacity, u32 layer_begin,
              u32 layer_blocks, u32 dense_begin, u32 dense_blocks, u32 hidden, u32 classes, u64 stride, u32 most_partials,
              u32 by_rows, float one_minus_beta1, float one_minus_beta2, float eps, f16* stored, const Scaling* scaling) {
    step_all<f16>(steps, cursor, params, m, v, dx, sorted, begins, partials, h_last, dlogits, loss, hits, sums, vocab, e, owned,
                  buckets, capacity, layer_begin, layer_blocks, dense_begin, dense_blocks, hidden, classes, stride, most_partials,
                  by_rows, one_minus_beta1, one_minus_beta2, eps, stored, scaling);
}

template <typename T>
__device__ __forceinline__ void
update_all(const Step* steps, const u32* cursor, const double* scale, float* params, float* m, float* v, const float* grads,
           float one_minus_beta1, float one_minus_beta2, float eps, u32 n, T* stored, const Scaling* scaling) {
    const u64 i = ((u64)blockIdx.x * ADAM_THREADS + threadIdx.x) * 4;
    if (i >= n) return;
    Step step = steps[cursor[CURSOR_STEP]];
    if constexpr (SCALES<T>) {
        if (!scaling->done) return;
        step.alpha = scaling->alpha;
    }
    const float factor = scale ? (float)*scale : 1.0f;
    const Update k = update_of(step, one_minus_beta1, one_minus_beta2, eps, factor);
    const bool aligned = i + 4 <= n;
    float4 g = load4(grads, i, n, aligned);
    // A gradient of 0 stays one: a factor that is not finite forbids the skipping.
    g = make_float4(g.x * factor, g.y * factor, g.z * factor, g.w * factor);
    const float4 mean = load4(m, i, n, aligned);
    const float4 square = load4(v, i, n, aligned);
    if (stays(k, g, mean, square)) return;
    update_four(k, g, load4(params, i, n, aligned), mean, square, params, m, v, stored, i, n, aligned);
}

extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
adam(const Step* steps, const u32* cursor, const double* scale, float* params, float* m, float* v, const float* grads,
     float one_minus_beta1, float one_minus_beta2, float eps, u32 n) {
    update_all<float>(steps, cursor, scale, params, m, v, grads, one_minus_beta1, one_minus_beta2, eps, n, nullptr, nullptr);
}

extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
adam_bf16(const Step* steps, const u32* cursor, const double* scale, float* params, float* m, float* v, const float* grads,
          float one_minus_beta1, float one_minus_beta2, float eps, u32 n, bf16* stored) {
    update_all<bf16>(steps, cursor, scale, params, m, v, grads, one_minus_beta1, one_minus_beta2, eps, n, stored, nullptr);
}

extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
adam_f16(const Step* steps, const u32* cursor, const double* scale, float* params, float* m, float* v, const float* grads,
         float one_minus_beta1, float one_minus_beta2, float eps, u32 n, f16* stored, const Scaling* scaling) {
    update_all<f16>(steps, cursor, scale, params, m, v, grads, one_minus_beta1, one_minus_beta2, eps, n, stored, scaling);
}

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
reduce_partials(const float* partials, float* out, u32 n, u32 count, u64 stride, u32 accumulate) {
    const u32 i = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (i >= n) return;
    const float sum = sum_partials(partials + i, count, stride);
    out[i] = accumulate ? out[i] + sum : sum;
}

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) gradient_norm(const float* grads, double* sums, u32 n) {
    constexpr u32 WARPS = ELEMENT_THREADS / WARP;
    __shared__ double warp_sums[WARPS];
    double sum = 0.0;
    for (u64 i = (u64)blockIdx.x * ELEMENT_THREADS + threadIdx.x; i < n; i += (u64)NORM_BLOCKS * ELEMENT_THREADS) {
        const double g = (double)grads[i];
        sum = fma(g, g, sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) warp_sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double all = 0.0;
        for (u32 warp = 0; warp < WARPS; ++warp) all += warp_sums[warp];
        sums[blockIdx.x] = all;
    }
}

extern "C" __global__ void __launch_bounds__(WARP)
clip_scale(const double* sums, const Step* steps, const u32* cursor, const Scaling* scaling, double* scale) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < NORM_BLOCKS; i += WARP) sum += sums[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) {
        const double clip = (double)steps[cursor[CURSOR_STEP]].clip_norm;
        const double inverse = scaling ? (double)scaling->inverse : 1.0;
        const double norm = sqrt(sum) * inverse;
        *scale = clip <= 0.0 || norm <= clip ? inverse : clip / norm * inverse;
    }
}
