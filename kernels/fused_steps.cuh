// The kernels of fused_steps.cu and fused_steps_half.cu, whose head says what they do, over the storage type T of half.cuh.
#pragma once
#include "adam.cuh"
#include "fused.cuh"
#include "loss_scale.cuh"

// ---------------------------------------------------------------- blocks that wait for each other

// Reads of a signal before a kernel gives up: some ten seconds. Its blocks are resident together, so this can only be an error, and a
// trap is better than a GPU that hangs.
constexpr u32 MOST_READS = 1u << 24;

// signals: how many blocks of a kind have been through with a step, all steps together; on lines of memory of their own.
constexpr u32 GRADIENTS = 0;
constexpr u32 PARAMETERS = SIGNAL_PITCH;

// All that the block has read and written comes before what any block does that has waited for this.
__device__ __forceinline__ void arrive(u32* signal) {
    __syncthreads();
    if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(signal)) : "memory");
}

__device__ __forceinline__ void wait_for(const u32* signal, u32 arrivals) {
    if (threadIdx.x == 0) {
        u32 found;
        u32 reads = 0;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(__cvta_generic_to_global(signal)) : "memory");
            if (++reads == MOST_READS) __trap();
        } while (found < arrivals);
    }
    __syncthreads();
}

// ---------------------------------------------------------------- what the roles share

// As the parameters of fused_step and adam_step of these names.
template <typename T>
struct Training {
    const Step* steps;
    u32 first, count;  // rows of `steps`
    u32* signals;
    const uint2 *tokens, *sorted;
    const u32* begins;
    u64 capacity;
    float *params, *m, *v;
    const float* class_weights;
    float *dx, *partials;
    T* h_last;
    float *dlogits, *loss, *hits;
    MetricSums* sums;
    u32 t, e, hidden, classes, vocab, owned, buckets, layer_begin, dense_begin;
    // Blocks by their number: of rows, then of these.
    u32 row_blocks, dense_blocks, layer_blocks;
    float one_minus_beta1, one_minus_beta2, eps;
    T* stored;  // params itself, if T is float
    // Of f16 alone.
    Scaling* scaling;
    u32* finite;
    double beta1, beta2;

    // Elements of a row's partial sums.
    __device__ __forceinline__ u32 stride() const { return (e + hidden + 1) * GATES * hidden; }

    // The operands of products as they are stored, and the biases.
    __device__ __forceinline__ Weights<T> weights(u32 e, u32 hidden, u32 classes) const {
        const T* layer = stored + layer_begin;
        const u64 w = (u64)e * GATES * hidden;
        const u64 u = (u64)hidden * GATES * hidden;
        return {stored, layer, layer + w, params + layer_begin + w + u, stored + dense_begin, params + dense_begin + hidden * classes};
    }
};

// What an update needs besides gradients.
template <typename T>
struct Rule {
    Update k;
    float unscale = 1.0f;

    __device__ __forceinline__ Rule(const Training<T>& a, const Step& step)
        : k(update_of(step, a.one_minus_beta1, a.one_minus_beta2, a.eps, 1.0f)) {}
};

// The loss' scale as it goes from step to step, in every block that updates parameters: each comes to the same.
template <typename T, u32 THREADS>
struct LossScale {
    Scaling now;

    __device__ __forceinline__ explicit LossScale(const Training<T>& a) {
        if constexpr (SCALES<T>) now = *a.scaling;
    }

    // Once the gradients are there, sets what f16 multiplies and updates them by. False: the step is skipped.
    __device__ __forceinline__ bool next(const Training<T>& a, const Step& step, Rule<T>& rule) {
        if constexpr (SCALES<T>) {
            now = next_scaling(now, all_set(a.finite, (u64)step.rows * (THREADS / WARP)), step, a.beta1, a.beta2);
            Step scaled = step;
            scaled.alpha = now.alpha;
            rule = Rule<T>(a, scaled);
            rule.unscale = now.inverse;
            return now.done != 0;
        }
        return true;
    }
};

// ---------------------------------------------------------------- rows

// A row of each batch, as fused_step has it.
template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ void rows_role(const Training<T>& a, float* shared, u32 updaters) {
    const Kept<HP, EP> kept(shared, a.t, a.classes);
    u32* ids = (u32*)(kept.dlogits + a.classes);
    const u32 row = blockIdx.x;
    for (u32 s = 0; s < a.count; ++s) {
        const u64 at = a.first + s;
        const Step step = a.steps[at];
        const bool has = row < step.rows;
        // What does not depend on parameters is there before they are.
        u32 label = 0;
        if (has) {
            const uint2* tokens = a.tokens + at * a.capacity + row * (a.t + 1);
            label = tokens[a.t].x;
            for (u32 i = threadIdx.x; i < a.t; i += blockDim.x) {
                const uint2 token = tokens[i];
                ids[i] = token.x;
                kept.places[i] = token.y;
            }
        }
        wait_for(a.signals + PARAMETERS, updaters * (s + 1));
        if (has) {
            // What follows from these is computed anew in each step: kept from step to step it would take registers that a step needs.
            const u32 t = anew(a.t), e = anew(a.e), hidden = anew(a.hidden), classes = anew(a.classes);
            const Weights<T> weights = a.weights(e, hidden, classes);
            const auto gathered = [&]() -> Arrived {
                gather<EP>(weights.table, kept.x, t, e, [&](u32 i, bool) { return ids[i]; });
                return {label, step.rows};
            };
            row_step<HP, EP, T>(kept, row, gathered, a.class_weights, weights, a.dx, a.partials, a.h_last, a.dlogits, a.loss, a.hits, t, e,
                                hidden, classes, a.stride(), a.scaling, a.finite);
        }
        arrive(a.signals + GRADIENTS);
    }
}

// ---------------------------------------------------------------- parameters

// The batch's metrics and the dense layer: a warp each, and an element.
template <u32 THREADS, typename T>
__device__ __forceinline__ void dense_role(const Training<T>& a, u32* cursor, u32 block) {
    constexpr u32 WARPS = THREADS / WARP;
    const u32 lane = threadIdx.x % WARP;
    LossScale<T, THREADS> scale(a);
    arrive(a.signals + PARAMETERS);
    for (u32 s = 0; s < a.count; ++s) {
        const Step step = a.steps[(u64)a.first + s];
        Rule<T> rule(a, step);
        wait_for(a.signals + GRADIENTS, a.row_blocks * (s + 1));
        const bool done = scale.next(a, step, rule);
        for (u32 item = block * WARPS + threadIdx.x / WARP; item <= (a.hidden + 1) * a.classes; item += a.dense_blocks * WARPS) {
            if (item == 0) {
                const BatchMean batch = batch_mean(a.loss, a.hits, 0, step.rows);
                if (lane != 0) continue;
                if (step.rows > 0) add_batch(a.sums, batch, step.rows);
                if constexpr (SCALES<T>) *a.scaling = scale.now;
                cursor[CURSOR_STEP] = a.first + s + 1;
                continue;
            }
            if (!done) continue;
            const u64 place = (u64)a.dense_begin + (item - 1);
            Element x(a.params, a.m, a.v, place);
            float sum = sum_dense(a.h_last, a.dlogits, item - 1, step.rows, a.hidden, a.classes);
            if constexpr (SCALES<T>) sum *= rule.unscale;
            if (lane == 0) update_at(rule.k, sum, x, a.params, a.m, a.v, a.stored, place);
        }
        arrive(a.signals + PARAMETERS);
    }
}

// W, U and b: a thread an element; its first one stays in registers.
template <u32 THREADS, typename T>
__device__ __forceinline__ void layer_role(const Training<T>& a, u32 block) {
    const u32 n = a.stride();
    // As few threads of a block as there are elements for, by whole warps: a row's sums come from the second-level cache, and a
    // multiprocessor gets so much at a time.
    const u32 threads = min(THREADS, (n + a.layer_blocks * WARP - 1) / (a.layer_blocks * WARP) * WARP);
    const u32 own = threadIdx.x < threads ? block * threads + threadIdx.x : n;
    Element kept(a.params, a.m, a.v, (u64)a.layer_begin + min(own, n - 1));
    LossScale<T, THREADS> scale(a);
    arrive(a.signals + PARAMETERS);
    for (u32 s = 0; s < a.count; ++s) {
        const Step step = a.steps[(u64)a.first + s];
        Rule<T> rule(a, step);
        wait_for(a.signals + GRADIENTS, a.row_blocks * (s + 1));
        const auto update_one = [&](u32 i, Element& x) {
            float g = sum_partials<32>(a.partials + i, step.rows, n);
            if constexpr (SCALES<T>) g *= rule.unscale;
            update_at(rule.k, g, x, a.params, a.m, a.v, a.stored, (u64)a.layer_begin + i);
        };
        if (scale.next(a, step, rule)) {
            if (own < n) update_one(own, kept);
            for (u32 i = own + a.layer_blocks * threads; i < n; i += a.layer_blocks * threads) {
                Element other(a.params, a.m, a.v, (u64)a.layer_begin + i);
                update_one(i, other);
            }
        }
        arrive(a.signals + PARAMETERS);
    }
}

// Shared memory of a block of the table, in order; FusedSteps::new (src/backend/cuda/fused_steps.rs) counts it.
struct Bucket {
    float4* staged;   // [STAGED_QUADS]: dx of a chunk of tokens
    float4* carried;  // [2, EMBEDDING_TILE / 4]: sums of a row whose tokens go on in the next chunk, by turns
    u32* keys;        // [STAGED_QUADS + 1]: of a chunk, and of the token behind it
    u32* touched;     // [owned / 32, rounded up]: a bit for each row that has tokens in the step

    __device__ __forceinline__ explicit Bucket(float* shared)
        : staged((float4*)shared), carried(staged + STAGED_QUADS), keys((u32*)(carried + EMBEDDING_TILE / 2)),
          touched(keys + STAGED_QUADS + 1) {}
};

// The rows bucket, bucket + buckets, … of the table, four columns at a time.
template <u32 THREADS, typename T>
__device__ __forceinline__ void table_role(const Training<T>& a, float* shared, u32 bucket) {
    const Bucket own(shared);
    const u32 quads = (a.e + 3) / 4;
    const bool aligned = a.e % 4 == 0;
    const u32 rows = min(a.owned, (a.vocab - bucket + a.buckets - 1) / a.buckets);
    const u32 first_key = bucket * a.owned;
    const u32 most = STAGED_QUADS / quads;
    LossScale<T, THREADS> scale(a);
    arrive(a.signals + PARAMETERS);
    for (u32 s = 0; s < a.count; ++s) {
        const u64 at = a.first + s;
        const Step step = a.steps[at];
        Rule<T> rule(a, step);
        const u32* bounds = a.begins + at * (a.buckets + 1) + bucket;
        const u32 begin = bounds[0];
        const u32 n = bounds[1] - begin;
        const uint2* sorted = a.sorted + at * a.capacity + begin;
        const float* dx = a.dx + (u64)begin * a.e;
        for (u32 i = threadIdx.x; i < (rows + 31) / 32; i += THREADS) own.touched[i] = 0;
        for (u32 i = threadIdx.x; i < min(n, most + 1); i += THREADS) own.keys[i] = sorted[i].x;
        __syncthreads();
        for (u32 i = threadIdx.x; i < n; i += THREADS) {
            const u32 row = sorted[i].x - first_key;
            if (i == 0 || sorted[i - 1].x - first_key != row) atomicOr(own.touched + row / 32, 1u << row % 32);
        }
        __syncthreads();
        // Momentum goes on where there are no tokens: nobody reads these rows in this step.
        const auto untouched = [&]() {
            for (u32 i = threadIdx.x; i < rows * quads; i += THREADS) {
                const u32 row = i / quads;
                if (own.touched[row / 32] >> row % 32 & 1) continue;
                const u32 col = i % quads * 4;
                const u64 base = ((u64)row * a.buckets + bucket) * a.e;
                const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                const float4 mean = load4(a.m + base, col, a.e, aligned);
                const float4 square = load4(a.v + base, col, a.e, aligned);
                if (stays(rule.k, none, mean, square)) continue;
                const float4 p = load4(a.params + base, col, a.e, aligned);
                update_four(rule.k, none, p, mean, square, a.params + base, a.m + base, a.v + base, a.stored + base, col, a.e, aligned);
            }
        };
        if constexpr (!SCALES<T>) untouched();
        wait_for(a.signals + GRADIENTS, a.row_blocks * (s + 1));
        const bool done = scale.next(a, step, rule);
        if constexpr (SCALES<T>) {
            if (done) untouched();
        }
        u32 last_key = 0;
        for (u32 first = 0; done && first < n; first += most) {
            const u32 count = min(most, n - first);
            if (first > 0) {
                for (u32 i = threadIdx.x; i < min(n - first, most + 1); i += THREADS) own.keys[i] = sorted[first + i].x;
                __syncthreads();
            }
            const auto begins = [&](u32 i) { return i == 0 || own.keys[i - 1] != own.keys[i]; };
            const auto base_of = [&](u32 i) { return ((u64)(own.keys[i] - first_key) * a.buckets + bucket) * a.e; };
            // The thread's first row is asked for along with dx.
            float4 p = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            float4 mean = p;
            float4 square = p;
            const auto ask = [&](u32 item) {
                const u64 base = base_of(item / quads);
                const u32 col = item % quads * 4;
                p = load4(a.params + base, col, a.e, aligned);
                mean = load4(a.m + base, col, a.e, aligned);
                square = load4(a.v + base, col, a.e, aligned);
            };
            if (threadIdx.x < count * quads && begins(threadIdx.x / quads)) ask(threadIdx.x);
            for (u32 i = threadIdx.x; i < count * quads; i += THREADS) {
                own.staged[i] = load4(dx + (u64)(first + i / quads) * a.e, i % quads * 4, a.e, aligned);
            }
            __syncthreads();
            const u32 turn = first / most % 2;
            for (u32 item = threadIdx.x; item < count * quads; item += THREADS) {
                u32 i = item / quads;
                const u32 quad = item % quads;
                if (!begins(i)) continue;
                if (item != threadIdx.x) ask(item);
                const u64 base = base_of(i);
                const u32 key = own.keys[i];
                float4 g = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (i == 0 && first > 0 && key == last_key) g = own.carried[(1 - turn) * (EMBEDDING_TILE / 4) + quad];
                do {
                    const float4 part = own.staged[i * quads + quad];
                    g.x += part.x;
                    g.y += part.y;
                    g.z += part.z;
                    g.w += part.w;
                    ++i;
                } while (i < count && own.keys[i] == key);
                if (i == count && first + count < n && own.keys[i] == key) {
                    own.carried[turn * (EMBEDDING_TILE / 4) + quad] = g;
                    continue;
                }
                if constexpr (SCALES<T>) g = make_float4(g.x * rule.unscale, g.y * rule.unscale, g.z * rule.unscale, g.w * rule.unscale);
                if (stays(rule.k, g, mean, square)) continue;
                update_four(rule.k, g, p, mean, square, a.params + base, a.m + base, a.v + base, a.stored + base, quad * 4, a.e, aligned);
            }
            last_key = own.keys[count - 1];
            __syncthreads();
        }
        arrive(a.signals + PARAMETERS);
    }
}

// ---------------------------------------------------------------- the kernels

template <u32 HP, u32 EP, typename T>
__device__ __forceinline__ void fused_steps(const Training<T>& a, u32* cursor) {
    constexpr u32 THREADS = 2 * GATES * HP;
    extern __shared__ __align__(16) float shared[];
    u32 block = blockIdx.x;
    if (block < a.row_blocks) return rows_role<HP, EP, T>(a, shared, gridDim.x - a.row_blocks);
    block -= a.row_blocks;
    if (block < a.dense_blocks) return dense_role<THREADS, T>(a, cursor, block);
    block -= a.dense_blocks;
    if (block < a.layer_blocks) return layer_role<THREADS, T>(a, block);
    table_role<THREADS, T>(a, shared, block - a.layer_blocks);
}

// The kernel of these widths, named with this suffix. In 16 bits it has the parameters' copy, of f16 also the scale of the loss, and the
// flags of fused_step.
#define FUSED_STEPS(hp, ep, suffix, T, more_parameters, ...)                                                                         \
    extern "C" __global__ void __launch_bounds__(2 * GATES * hp, 1)                                                                  \
    fused_steps_h##hp##_e##ep##suffix(const Step* steps, u32* cursor, u32* signals, const uint2* tokens, const uint2* sorted,        \
                                      const u32* begins, const float* class_weights, float* params, float* m, float* v, float* dx,   \
                                      float* partials, T* h_last, float* dlogits, float* loss, float* hits, MetricSums* sums,        \
                                      u64 capacity, u32 first, u32 count, u32 t, u32 e, u32 hidden, u32 classes, u32 vocab,          \
                                      u32 owned, u32 buckets, u32 layer_begin, u32 dense_begin, u32 row_blocks, u32 dense_blocks,    \
                                      u32 layer_blocks, float one_minus_beta1, float one_minus_beta2, float eps more_parameters) {   \
        const Training<T> a = {steps,       first,       count,        signals,       tokens,      sorted,       begins,             \
                               capacity,    params,      m,            v,             class_weights, dx,         partials,           \
                               h_last,      dlogits,     loss,         hits,          sums,        t,            e,                  \
                               hidden,      classes,     vocab,        owned,         buckets,     layer_begin,  dense_begin,        \
                               row_blocks,  dense_blocks, layer_blocks, one_minus_beta1, one_minus_beta2, eps,   __VA_ARGS__};       \
        fused_steps<hp, ep, T>(a, cursor);                                                                                           \
    }
