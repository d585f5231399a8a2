// The 16-bit copy of an arena of parameters: to[i] = narrow(from[i]), i < n.
// Launch: a thread FOURS groups of four elements (half.cuh), blocks of ELEMENT_THREADS.
#include "half.cuh"

#define STORE(name, T)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) name(const float* from, T* to, u32 n) {                       \
        const bool aligned = is_aligned(from) && is_aligned(to);                                                                \
        _Pragma("unroll") for (u32 j = 0; j < FOURS; ++j) {                                                                     \
            const u64 i = four_at(j, ELEMENT_THREADS);                                                                          \
            const bool whole = aligned && i + 4 <= n;                                                                           \
            store4(to, i, n, whole, load4(from, i, n, whole));                                                                  \
        }                                                                                                                       \
    }
STORE(store_bf16, bf16)
STORE(store_f16, f16)
