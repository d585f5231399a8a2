// Control flow, votes, shuffles and atomics: what a lane does depends on its data.

/// out[i] = steps of the Collatz walk from i + 1; lanes leave the loop at different times.
extern "C" __global__ void collatz(unsigned *out, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned long long x = i + 1;
    unsigned steps = 0;
    while (x != 1) {
        if (x & 1) x = 3 * x + 1;
        else x >>= 1;
        ++steps;
    }
    out[i] = steps;
}

/// Branches by lane, then a warp barrier and a full-warp shuffle that needs all lanes back together.
extern "C" __global__ void reconverge(int *out, const int *in) {
    int lane = threadIdx.x & 31;
    int v = in[threadIdx.x];
    switch (v % 5) {
    case 0: v = v * 3 + 1; break;
    case 1: v = v - lane * 7; break;
    case 2: for (int k = 0; k < lane; ++k) v ^= k * v; break;
    case 3: v = __popc(v) + __clz(v); break;
    default: v = (int)__brev((unsigned)v) >> 3; break;
    }
    __syncwarp();
    unsigned even = __ballot_sync(0xffffffffu, (v & 1) == 0);
    int next = __shfl_up_sync(0xffffffffu, v, 1);
    out[threadIdx.x] = (lane ? next : v) ^ (int)even;
}

/// counts[key] += 1 for every element; order does not matter for integers.
extern "C" __global__ void histogram(unsigned *counts, const unsigned char *keys, int n) {
    __shared__ unsigned part[256];
    for (int k = threadIdx.x; k < 256; k += blockDim.x) part[k] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&part[keys[i]], 1u);
    __syncthreads();
    for (int k = threadIdx.x; k < 256; k += blockDim.x) if (part[k]) atomicAdd(&counts[k], part[k]);
}

/// A data-dependent index keeps the scratch in local memory.
extern "C" __global__ void local_scratch(int *out, const int *order) {
    int scratch[8];
    for (int k = 0; k < 8; ++k) scratch[order[k] & 7] = k * k + (int)threadIdx.x;
    int sum = 0;
    for (int k = 0; k < 8; ++k) sum = sum * 3 + scratch[order[7 - k] & 7];
    out[threadIdx.x] = sum;
}

/// Arithmetic for the speed figure: n rounds of a multiply-add on four values a thread.
extern "C" __global__ void spin(float *out, int n) {
    float a = threadIdx.x, b = a + 1, c = a + 2, d = a + 3;
#pragma unroll 4
    for (int k = 0; k < n; ++k) {
        a = fmaf(a, 0.5f, 1.0f);
        b = fmaf(b, 0.25f, a);
        c = fmaf(c, 0.125f, b);
        d = fmaf(d, 0.5f, c);
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = a + b + c + d;
}
