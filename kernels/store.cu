// The 16-bit copy of an arena of parameters: to[i] = narrow(from[i]), a thread an element of [n].
#include "half.cuh"

#define STORE(name, T)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) name(const float* from, T* to, u32 n) {                       \
        const u64 i = (u64)blockIdx.x * ELEMENT_THREADS + threadIdx.x;                                                          \
        if (i < n) to[i] = narrow<T>(from[i]);                                                                                  \
    }
STORE(store_bf16, bf16)
STORE(store_f16, f16)
