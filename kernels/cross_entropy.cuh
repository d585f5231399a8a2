// One row's softmax and cross entropy, and one batch's means: what the kernels of cross_entropy.cu, adam.cu and fused.cu share.
#pragma once
#include "common.cuh"

// A warp's softmax over one row of logits: probs[c] for all classes, and what the row's loss needs, in lane 0.
// A row with a NaN, or an infinite largest logit, has NaN probabilities and loss and hits nothing.
struct Softmax {
    float largest, sum;
    u32 index;
};

__device__ __forceinline__ Softmax softmax_row(const float* logits, float* probs, u32 classes) {
    const u32 lane = threadIdx.x % WARP;
    // The first largest: each lane its own, then by halves; among equals the lower index.
    float largest = __uint_as_float(0xff800000u);
    u32 index = 0xffffffffu;
    for (u32 c = lane; c < classes; c += WARP) {
        const float logit = logits[c];
        if (logit > largest || index == 0xffffffffu) {
            largest = logit;
            index = c;
        }
    }
    // Beyond the classes, lanes have nothing to add: no halves of theirs.
    const u32 first_step = classes > WARP / 2 ? WARP / 2 : 1u << (31 - __clz((int)classes * 2 - 1)) >> 1;
    for (u32 step = first_step; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, largest, step);
        const u32 other_index = __shfl_xor_sync(ALL_LANES, index, step);
        if (other_index != 0xffffffffu && (index == 0xffffffffu || other > largest || (other == largest && other_index < index))) {
            largest = other;
            index = other_index;
        }
    }
    // Where a NaN is about, lanes may differ; lane 0's choice serves: the sum is NaN in any case.
    largest = __shfl_sync(ALL_LANES, largest, 0);
    index = __shfl_sync(ALL_LANES, index, 0);

    float sum = 0.0f;
    for (u32 c = lane; c < classes; c += WARP) sum += strict_exp(logits[c] - largest);
    // The order of warp_sum.
    for (u32 step = first_step; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    for (u32 c = lane; c < classes; c += WARP) probs[c] = strict_exp(logits[c] - largest) / sum;
    return {largest, sum, index};
}

// Lane 0's loss and hit of that row; logit: the label's.
struct RowLoss {
    float loss, hit;
};

__device__ __forceinline__ RowLoss row_loss(const Softmax& row, float logit, u32 label) {
    const float loss = strict_log(row.sum) - (logit - row.largest);
    return {loss, row.index == label && loss == loss ? 1.0f : 0.0f};
}

// A warp's mean loss (in f64) and hits of rows [begin, end): lanes stride over the rows, then a fixed tree.
struct BatchMean {
    double mean;
    u32 correct;
};

__device__ __forceinline__ BatchMean batch_mean(const float* loss, const float* hits, u64 begin, u64 end) {
    double sum = 0.0;
    u32 count = 0;
    for (u64 row = begin + threadIdx.x % WARP; row < end; row += WARP) {
        sum += (double)loss[row];
        count += hits[row] > 0.5f ? 1 : 0;
    }
    sum = warp_sum(sum);
    count = warp_sum(count);
    return {sum / (double)(end - begin), count};
}

// Adds a batch to the metrics; one thread.
__device__ __forceinline__ void add_batch(MetricSums* sums, const BatchMean& batch, u32 rows) {
    sums->loss_sum += batch.mean;
    sums->correct += batch.correct;
    sums->batches += 1;
    sums->examples += rows;
}
