// Softmax and sparse cross entropy through log-softmax, unclipped, and the running loss and accuracy.
//   forward    probs = exp(z)/sum(exp(z)), z = logits − max;  loss = (log(sum) − z[label])·weight;  hit = first largest logit is the
//              label's
//   backward   dlogits = (probs − onehot(label))/B·weight;  weight = class_weights[label], 1 if class_weights is null; and with
//              scaling (f16) times the scale of the loss
//   metrics    sums += each batch's mean loss and its hits, batch by batch, in f64; then the cursor moves on
// Shapes: logits probs dlogits [B,C], labels loss hits [B], class_weights [C]. Labels are below C: the host has checked.
// Launch: forward a warp a row, DENSE_WARPS warps a block; backward a thread an element; metrics one block of METRIC_THREADS.
#include "cross_entropy.cuh"
#include "half.cuh"

// labels null: only probs are written.
extern "C" __global__ void __launch_bounds__(DENSE_WARPS * WARP)
cross_entropy_forward(const float* logits, const u32* labels, const float* class_weights, float* probs, float* loss, float* hits,
                      u32 batch, u32 classes) {
    const u64 row = (u64)blockIdx.x * DENSE_WARPS + threadIdx.x / WARP;
    if (row >= batch) return;
    const u32 lane = threadIdx.x % WARP;
    logits += row * classes;
    const Softmax softmax = softmax_row(logits, probs + row * classes, classes);
    if (labels && lane == 0) {
        const RowLoss found = row_loss(softmax, logits[labels[row]], labels[row]);
        loss[row] = class_weights ? found.loss * class_weights[labels[row]] : found.loss;
        hits[row] = found.hit;
    }
}

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
cross_entropy_backward(const float* probs, const u32* labels, const float* class_weights, const Scaling* scaling, float* dlogits,
                       u32 batch, u32 classes) {
    const u64 i = (u64)blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (i >= (u64)batch * classes) return;
    const u64 row = i / classes;
    const u32 col = (u32)(i - row * classes);
    const u32 label = labels[row];
    const float onehot = label == col ? 1.0f : 0.0f;
    float gradient = (probs[i] - onehot) / (float)batch;
    if (class_weights) gradient *= class_weights[label];
    if (scaling) gradient *= scaling->scale;
    dlogits[i] = gradient;
}

// One warp a batch of batch_size rows (the last may be smaller), METRIC_BATCHES batches between two barriers; one thread adds them in
// order. cursor null: nothing advances. In a training step this is the last launch: all others have read the cursor.
extern "C" __global__ void __launch_bounds__(METRIC_THREADS)
metrics(const float* loss, const float* hits, MetricSums* sums, u32* cursor, u32 rows, u32 batch_size) {
    __shared__ double mean[METRIC_BATCHES];
    __shared__ u32 correct[METRIC_BATCHES];
    const u32 batches = (u32)(((u64)rows + batch_size - 1) / batch_size);
    for (u32 first = 0; first < batches; first += METRIC_BATCHES) {
        const u32 here = min(METRIC_BATCHES, batches - first);
        for (u32 i = threadIdx.x / WARP; i < here; i += METRIC_THREADS / WARP) {
            const u64 begin = (u64)(first + i) * batch_size;
            const BatchMean found = batch_mean(loss, hits, begin, min((u64)rows, begin + batch_size));
            if (threadIdx.x % WARP == 0) {
                mean[i] = found.mean;
                correct[i] = found.correct;
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
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
        if (cursor) cursor[CURSOR_STEP] += 1;
    }
}
