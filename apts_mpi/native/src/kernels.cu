// The kernels on a GPU: the loops of kernels.cpp with the columns shared out over thread blocks.
//
// A block of THREADS sums a tile of TILE columns, a second launch adds the tiles. All sums are float64, in an order that only n and
// THREADS decide: the same bits in every call, others than on a CPU. Nothing is allocated and nothing waits.
// tests/native compiles this page as C++ with a thread of the host for each of the device, to check sums and races without a GPU.
#ifdef __CUDACC__
#include <cuda_runtime.h>
#define LAUNCH(kernel, grid, stream, ...) kernel<<<static_cast<unsigned>(grid), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define FAILURE() (cudaPeekAtLastError() == cudaSuccess ? nullptr : cudaGetErrorString(cudaGetLastError()))
#endif
#include "device.hpp"

#ifndef THREADS
#define THREADS 256
#endif

namespace device {
namespace {

constexpr int EACH = TILE / THREADS, GROUP = 4;  // columns of a thread; rows whose sums are added together
constexpr int SUMS = 3 * GROUP;

static_assert(TILE % THREADS == 0 && (THREADS & (THREADS - 1)) == 0 && SUMS >= 10, "tiles are shared out evenly, and halved");

// out[k] = the sum over all threads of mine[k], k < count
__device__ void across(const double* mine, int count, double* out) {
    __shared__ double all[SUMS][THREADS];
    for (int k = 0; k < count; ++k) all[k][threadIdx.x] = mine[k];
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half)
            for (int k = 0; k < count; ++k) all[k][threadIdx.x] += all[k][threadIdx.x + half];
    }
    __syncthreads();
    for (int k = threadIdx.x; k < count; k += THREADS) out[k] = all[k][0];
    __syncthreads();  // before the next call writes
}

template <class T>
__global__ void observe_tile(const T* memory, ptrdiff_t n, int used, const T* s, T* y, const T* grad, const T* grad_new, double* sums) {
    const ptrdiff_t first = blockIdx.x * TILE + threadIdx.x;
    T v[4][EACH];  // s, y, grad_new, grad; zero beyond n
    double* const out = sums + blockIdx.x * (3 * used + 10);
    for (int j = 0; j < EACH; ++j) {
        const ptrdiff_t i = first + j * THREADS;
        const bool inside = i < n;
        v[0][j] = inside ? s[i] : T(0), v[2][j] = inside ? grad_new[i] : T(0), v[3][j] = inside ? grad[i] : T(0);
        v[1][j] = v[2][j] - v[3][j];
        if (inside) y[i] = v[1][j];
    }
    double mine[SUMS];
    for (int r = 0; r < used; r += GROUP) {
        const int rows = used - r < GROUP ? used - r : GROUP;
        for (int k = 0; k < SUMS; ++k) mine[k] = 0.0;
        for (int k = 0; k < rows; ++k) {
            const T* const row = memory + (r + k) * n;
            for (int j = 0; j < EACH; ++j) {
                const ptrdiff_t i = first + j * THREADS;
                const double x = i < n ? row[i] : T(0);
                for (int a = 0; a < 3; ++a) mine[3 * k + a] += x * v[a][j];
            }
        }
        across(mine, 3 * rows, out + 3 * r);
    }
    int k = 0;
    for (int a = 0; a < 4; ++a)
        for (int b = a; b < 4; ++b, ++k) {
            mine[k] = 0.0;
            for (int j = 0; j < EACH; ++j) mine[k] += static_cast<double>(v[a][j]) * v[b][j];
        }
    across(mine, 10, out + 3 * used);
}

template <class T>
__global__ void combine_tile(const T* memory, ptrdiff_t n, Chosen chosen, double factor, const T* grad, T* out, double* sums) {
    double square = 0.0;
    for (int j = 0; j < EACH; ++j) {
        const ptrdiff_t i = blockIdx.x * TILE + threadIdx.x + j * THREADS;
        if (i >= n) break;
        double sum = factor * grad[i];
        for (int r = 0; r < chosen.count; ++r) sum += chosen.weight[r] * memory[chosen.row[r] * n + i];
        const T rounded = static_cast<T>(sum);
        out[i] = rounded;
        square += static_cast<double>(rounded) * rounded;
    }
    across(&square, 1, sums + blockIdx.x);
}

template <class T>
__global__ void correct_tile(T* grad, const T* correction, const T* theta, const T* origin, ptrdiff_t n, double* sums) {
    double sum = 0.0;
    for (int j = 0; j < EACH; ++j) {
        const ptrdiff_t i = blockIdx.x * TILE + threadIdx.x + j * THREADS;
        if (i >= n) break;
        sum += static_cast<double>(correction[i]) * (static_cast<double>(theta[i]) - static_cast<double>(origin[i]));
        grad[i] += correction[i];
    }
    across(&sum, 1, sums + blockIdx.x);
}

// sums[k] = sum over the tiles t of parts[t * width + k]; block k does it for one k
__global__ void add_tiles(const double* parts, ptrdiff_t count, int width, double* sums) {
    double mine = 0.0;
    for (ptrdiff_t t = threadIdx.x; t < count; t += THREADS) mine += parts[t * width + blockIdx.x];
    across(&mine, 1, sums + blockIdx.x);
}

}  // namespace

template <class T>
const char* observe(const T* memory, ptrdiff_t n, int used, int spare, T* y, const T* grad, const T* grad_new, double* sums, void* stream) {
    const int width = 3 * used + 10;
    LAUNCH(observe_tile, tiles(n), stream, memory, n, used, memory + spare * n, y, grad, grad_new, sums + width);
    LAUNCH(add_tiles, width, stream, sums + width, tiles(n), width, sums);
    return FAILURE();
}

template <class T>
const char* combine(const T* memory, ptrdiff_t n, const Chosen& chosen, double factor, const T* grad, T* out, double* sums, void* stream) {
    LAUNCH(combine_tile, tiles(n), stream, memory, n, chosen, factor, grad, out, sums + 1);
    LAUNCH(add_tiles, 1, stream, sums + 1, tiles(n), 1, sums);
    return FAILURE();
}

template <class T>
const char* correct(T* grad, const T* correction, const T* theta, const T* origin, ptrdiff_t n, double* sums, void* stream) {
    LAUNCH(correct_tile, tiles(n), stream, grad, correction, theta, origin, n, sums + 1);
    LAUNCH(add_tiles, 1, stream, sums + 1, tiles(n), 1, sums);
    return FAILURE();
}

template const char* observe(const float*, ptrdiff_t, int, int, float*, const float*, const float*, double*, void*);
template const char* observe(const double*, ptrdiff_t, int, int, double*, const double*, const double*, double*, void*);
template const char* combine(const float*, ptrdiff_t, const Chosen&, double, const float*, float*, double*, void*);
template const char* combine(const double*, ptrdiff_t, const Chosen&, double, const double*, double*, double*, void*);
template const char* correct(float*, const float*, const float*, const float*, ptrdiff_t, double*, void*);
template const char* correct(double*, const double*, const double*, const double*, ptrdiff_t, double*, void*);

}  // namespace device
