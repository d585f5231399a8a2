// Many forms at once: the library's functions, 64-bit and 8-bit arithmetic, atomics, votes, shared bytes.

extern "C" __global__ void math(float *out, const float *x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    out[i] = expf(v) + logf(fabsf(v) + 1.0f) + tanhf(v) + sqrtf(fabsf(v)) + powf(fabsf(v) + 0.5f, 1.5f) + erff(v) + rsqrtf(v * v + 1.0f)
        + floorf(v) + ceilf(v) + roundf(v) + truncf(v) + fmodf(v, 0.3f) + __expf(v) + __logf(v * v + 1.0f) + __fdividef(v, 3.0f) + log1pf(v * v)
        + copysignf(1.0f, v) + sinf(v) + cosf(v) + __frcp_rn(v + 3.0f) + fdimf(v, 0.1f) + cbrtf(v) + (isnan(v) ? 1.0f : 0.0f) + __saturatef(v);
}
extern "C" __global__ void math64(double *out, const double *x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double v = x[i];
    out[i] = exp(v) + log(fabs(v) + 1.0) + tanh(v) + sqrt(fabs(v)) + floor(v) + 1.0 / (v + 3.0) + fma(v, v, 1.0) + (double)(float)v + (double)(long long)v;
}
extern "C" __global__ void integers(unsigned long long *out, const long long *a, const int *b, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long x = a[i];
    int y = b[i];
    unsigned long long r = (unsigned long long)(x / (y | 1)) ^ (unsigned long long)(x % (y | 1)) ^ __umul64hi(x, y) ^ __brevll(x) ^ __popcll(x) ^ __clzll(x);
    r += __byte_perm(y, (int)x, 0x3210) + __funnelshift_l(y, (int)x, y) + __ffs(y) + (y > 0 ? max(y, 3) : min(y, -3)) + abs(y) + __mulhi(y, 12345) + __sad(y, 3, 4u);
    unsigned char c = (unsigned char)y;
    short s = (short)x;
    r += c * s + (signed char)c + (unsigned)(s >> 3) + (s < c) + __umulhi(y, y) + __mul24(y, 3) + (y >> 4 & 0x3f);
    out[i] = r;
}
extern "C" __global__ void collectives(float *f, unsigned *u, unsigned long long *w) {
    __shared__ unsigned char flags[64];
    __shared__ float total;
    int t = threadIdx.x;
    if (t == 0) total = 0.0f;
    flags[t] = (unsigned char)(t * 3);
    __syncthreads();
    atomicAdd(&total, 1.0f);
    atomicMax(&u[0], (unsigned)t);
    atomicMin((int *)&u[1], -t);
    atomicCAS(&u[2], 0u, 7u);
    atomicExch(&u[3], 9u);
    atomicAdd(w, 2ull);
    atomicAdd(f + 1, 1.0f);
    unsigned lower = __activemask() & ((1u << (t & 31)) - 1);
    int any = __any_sync(~0u, t == 40), every = __all_sync(~0u, t >= 0);
    int bcast = __shfl_sync(~0u, t, 3, 8);
    __threadfence();
    __syncthreads();
    u[4 + t] = flags[63 - t] + __popc(lower) * 1000 + any + every * 2 + bcast * 100000;
    if (t == 0) f[0] = total;
}
