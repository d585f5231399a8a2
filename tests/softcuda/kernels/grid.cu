// Blocks that wait for each other: right only when all of them are on the device at once.

/// part[block] = the block's number + 1; after all blocks have written, out[block] = the sum of all parts.
/// bar is 0 before. One thread of every block counts itself and waits for the others.
extern "C" __global__ void grid_sum(unsigned *part, unsigned *out, unsigned *bar) {
    if (threadIdx.x == 0) {
        part[blockIdx.x] = blockIdx.x + 1;
        __threadfence();
        atomicAdd(bar, 1u);
        while (*(volatile unsigned *)bar < gridDim.x) {}
        __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned sum = 0;
        for (unsigned b = 0; b < gridDim.x; ++b) sum += ((volatile unsigned *)part)[b];
        out[blockIdx.x] = sum;
    }
}
/// *x += 1, by one thread.
extern "C" __global__ void increment(unsigned *x) { *x += 1; }
