// Gathers a batch out of the data set on the device.
//   ids[s, b] = x[row(b), s]     batch_labels[b] = labels[row(b)]     row(b) = order[start + b], or start + b without an order
// x [N,T] and order [N] stay on the device; ids are time-major [T,B]. start is read from the table of steps at the cursor (so that
// a captured launch reads a new batch each time; it also tells the step's last kernel which step it is), or is `first` where there
// is no table. labels and batch_labels are both null or neither. The host has checked that start + rows stays within the order (or
// N), and every index of the order below N.
// Launch: a thread an element of ids, and at least one for each row; blocks of ELEMENT_THREADS.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS)
gather_batch(const u32* x, const u32* labels, const u32* order, const Step* steps, u32* cursor, u32 first, u32* ids,
             u32* batch_labels, u32 rows, u32 t) {
    const u64 i = (u64)blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    const u64 elements = (u64)rows * t;
    if (i >= elements && i >= rows) return;
    const u32 start = steps ? steps[cursor[CURSOR_STEP]].batch_start : first;
    if (steps && i == 0) cursor[CURSOR_LAST] = cursor[CURSOR_STEP];
    if (i < elements) {
        const u32 b = (u32)(i % rows);
        const u32 s = (u32)(i / rows);
        const u32 row = order ? order[start + b] : start + b;
        ids[i] = x[(u64)row * t + s];
    }
    if (batch_labels && i < rows) {
        const u32 b = (u32)i;
        const u32 row = order ? order[start + b] : start + b;
        batch_labels[b] = labels[row];
    }
}
