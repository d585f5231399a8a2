// One planted mistake a kernel. Each must be caught with its kind, its kernel and its line.

extern "C" __global__ void load_past_end(const float *x, float *out) { out[threadIdx.x] = x[threadIdx.x + 1]; }
extern "C" __global__ void store_past_end(float *out) { out[threadIdx.x + 1] = 1.0f; }
extern "C" __global__ void misaligned(const char *x, float *out) { out[threadIdx.x] = *(const float *)(x + 2); }
extern "C" __global__ void copy(const float *x, float *out) { out[threadIdx.x] = x[threadIdx.x]; }
extern "C" __global__ void shared_past_end(float *out) {
    extern __shared__ float s[];
    s[threadIdx.x + 1] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void shared_unwritten(float *out) {
    __shared__ float s[64];
    if (threadIdx.x != 5) s[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}
extern "C" __global__ void local_unwritten(int *out, int at) {
    int scratch[8];
    scratch[at & 7] = 3;
    out[threadIdx.x] = scratch[(at + 1) & 7];
}
/// The barrier between the second stores and the loads is missing.
extern "C" __global__ void race_block(float *out) {
    __shared__ float s[64];
    s[threadIdx.x] = 0.0f;
    __syncthreads();
    s[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = s[63 - threadIdx.x];
}
/// Inside one warp: no __syncwarp between.
extern "C" __global__ void race_warp(float *out) {
    __shared__ volatile float s[32];
    s[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = s[31 - threadIdx.x];
}
extern "C" __global__ void warp_ordered(float *out) {
    __shared__ float s[32];
    s[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = s[31 - threadIdx.x];
}
/// All threads store to one place.
extern "C" __global__ void race_write(float *out) {
    __shared__ float s[2];
    s[0] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = s[0];
}
extern "C" __global__ void divergent_barrier(float *out) {
    if (threadIdx.x < 16) { out[threadIdx.x] = 1.0f; __syncthreads(); out[threadIdx.x] = 2.0f; }
    else { out[threadIdx.x] = 3.0f; }
    __syncwarp();
    out[threadIdx.x] += 1.0f;
}
/// Warp 0 waits at a barrier that warp 1 has left out, and the other way round.
extern "C" __global__ void two_barriers(float *out) {
    if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;");
    else asm volatile("bar.sync 2, 64;");
    out[threadIdx.x] = 1.0f;
}
extern "C" __global__ void endless(volatile int *flag) { while (*flag == 0) {} }
extern "C" __global__ void trapped() { asm volatile("trap;"); }
extern "C" __global__ void many_args(int a, double b, short c, const float *x, float *out) { *out = a + b + c + *x; }
extern "C" __global__ void null_store(float *out) { out[threadIdx.x] = 1.0f; }
/// NVRTC sees the mistake and makes a trap of it; the tests store to the table through `null_store`.
__constant__ int kTable[4] = {1, 2, 3, 4};
extern "C" __global__ void write_const(int at) { ((int *)kTable)[at] = 5; }
extern "C" __global__ void partial_shuffle(int *out) {
    int v = threadIdx.x;
    if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);
    out[threadIdx.x] = v;
}
