// h, c = one step of an LSTM cell from its pre-activations pre [B,4H] (gates i, f, g, o), as the shipped kernels write it:
// exp as a polynomial over correctly rounded operations, so that the result is defined bit for bit. One thread per (row, unit).

struct Dims {
    int batch, hidden;
    float forget_bias;
    long long stride;
};

__constant__ float kExp[6] = {1.0f, 1.0f, 0.5f, 0.16666667f, 0.041666668f, 0.008333334f};
__device__ unsigned long long g_calls = 7;

__device__ __forceinline__ float exp_poly(float x) {
    x = fminf(fmaxf(x, -87.0f), 88.0f);
    float n = rintf(x * 1.44269504f);
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = kExp[5];
    p = fmaf(p, r, kExp[4]);
    p = fmaf(p, r, kExp[3]);
    p = fmaf(p, r, kExp[2]);
    p = fmaf(p, r, kExp[1]);
    p = fmaf(p, r, kExp[0]);
    return p * __int_as_float(((int)n + 127) << 23);
}
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_poly(-x)); }
__device__ __noinline__ float tanh_exp(float x) {
    float e = exp_poly(2.0f * x);
    return (e - 1.0f) / (e + 1.0f);
}

extern "C" __global__ void lstm_cell(const float *pre, const float *c_prev, float *c, float *h, Dims d) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at == 0) atomicAdd(&g_calls, 1ull);
    if (at >= d.batch * d.hidden) return;
    int row = at / d.hidden, unit = at % d.hidden;
    const float *p = pre + row * d.stride + unit;
    float i = sigmoid(p[0]);
    float f = sigmoid(p[d.hidden] + d.forget_bias);
    float g = tanh_exp(p[2 * d.hidden]);
    float o = sigmoid(p[3 * d.hidden]);
    float cn = f * c_prev[at] + i * g;
    c[at] = cn;
    h[at] = o * tanh_exp(cn);
}
