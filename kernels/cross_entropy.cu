// Softmax and sparse cross entropy through log-softmax, unclipped, and the running loss and accuracy.
//   forward    probs = exp(z)/sum(exp(z)), z = logits − max;  loss = log(sum) − z[label];  hit = first largest logit is the label's
//   backward   dlogits = (probs − onehot(label))/B
//   metrics    sums += each batch's mean loss and its hits, batch by batch, in f64; then *cursor += 1
// Shapes: logits probs dlogits [B,C], labels loss hits [B]. Labels are below C: the host has checked.
// A row with a NaN, or an infinite largest logit, has NaN probabilities and loss and hits nothing.
// Launch: forward a warp a row, DENSE_WARPS warps a block; backward a thread an element; metrics one block of METRIC_THREADS.
#include "common.cuh"

// labels null: only probs are written.
extern "C" __global__ void __launch_bounds__(DENSE_WARPS * WARP)
cross_entropy_forward(const float* logits, const u32* labels, float* probs, float* loss, float* hits, u32 batch, u32 classes) {
    const u64 row = (u64)blockIdx.x * DENSE_WARPS + threadIdx.x / WARP;
    if (row >= batch) return;
    const u32 lane = threadIdx.x % WARP;
    logits += row * classes;
    probs += row * classes;

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
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) {
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
    sum = warp_sum(sum);
    for (u32 c = lane; c < classes; c += WARP) probs[c] = strict_exp(logits[c] - largest) / sum;
    if (labels && lane == 0) {
        const u32 label = labels[row];
        const float row_loss = strict_log(sum) - (logits[label] - largest);
        loss[row] = row_loss;
        hits[row] = index == label && row_loss == row_loss ? 1.0f : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
cross_entropy_backward(const float* probs, const u32* labels, float* dlogits, u32 batch, u32 classes) {
    const u64 i = (u64)blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (i >= (u64)batch * classes) return;
    const u64 row = i / classes;
    const u32 col = (u32)(i - row * classes);
    const float onehot = labels[row] == col ? 1.0f : 0.0f;
    dlogits[i] = (probs[i] - onehot) / (float)batch;
}

// One warp a batch of batch_size rows (the last may be smaller), METRIC_THREADS / 32 batches at a time; one thread adds them in
// order. cursor null: nothing advances. In a training step this is the last launch: all others have read *cursor.
extern "C" __global__ void __launch_bounds__(METRIC_THREADS)
metrics(const float* loss, const float* hits, MetricSums* sums, u32* cursor, u32 rows, u32 batch_size) {
    constexpr u32 WARPS = METRIC_THREADS / WARP;
    __shared__ double mean[WARPS];
    __shared__ u32 correct[WARPS];
    const u32 lane = threadIdx.x % WARP;
    const u32 warp = threadIdx.x / WARP;
    const u32 batches = (u32)(((u64)rows + batch_size - 1) / batch_size);
    for (u32 first = 0; first < batches; first += WARPS) {
        const u32 batch = first + warp;
        const u64 begin = (u64)batch * batch_size;
        const u64 end = min((u64)rows, begin + batch_size);
        double sum = 0.0;
        u32 count = 0;
        for (u64 row = begin + lane; row < end; row += WARP) {
            sum += (double)loss[row];
            count += hits[row] > 0.5f ? 1 : 0;
        }
        sum = warp_sum(sum);
        count = warp_sum(count);
        if (lane == 0) {
            mean[warp] = batch < batches ? sum / (double)(end - begin) : 0.0;
            correct[warp] = count;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            const u32 here = min(WARPS, batches - first);
            double loss_sum = sums->loss_sum;
            u64 all_correct = sums->correct;
            for (u32 i = 0; i < here; ++i) {
                loss_sum += mean[i];
                all_correct += correct[i];
            }
            sums->loss_sum = loss_sum;
            sums->correct = all_correct;
            sums->batches += here;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        sums->examples += rows;
        if (cursor) *cursor += 1;
    }
}
