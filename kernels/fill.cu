// out[i] = value over n floats. One thread per element, blocks of FILL_THREADS.
#include "common.cuh"

#ifndef FILL_THREADS
#error "FILL_THREADS comes from src/tuning.rs"
#endif

// out [n]: assigned.
extern "C" __global__ void __launch_bounds__(FILL_THREADS) fill(float *out, unsigned n, float value) {
    unsigned at = blockIdx.x * FILL_THREADS + threadIdx.x;
    if (at >= n) return;
    out[at] = value;
}
