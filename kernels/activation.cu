// The strict activations by themselves, so that their error can be measured over all of f32 on the device that runs them.
//   out[i] = exp | sigmoid | tanh | log (x[i]), which = 0 | 1 | 2 | 3, i < n
// Launch: a thread an element, blocks of ELEMENT_THREADS.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) activate(const float* x, float* out, u32 n, u32 which) {
    const u32 i = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (i >= n) return;
    const float value = x[i];
    float y;
    switch (which) {
        case 0: y = strict_exp(value); break;
        case 1: y = strict_sigmoid(value); break;
        case 2: y = strict_tanh(value); break;
        default: y = strict_log(value); break;
    }
    out[i] = y;
}
