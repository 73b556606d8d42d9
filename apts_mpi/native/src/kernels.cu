// The kernels on a GPU: the loops of kernels.cpp with the columns shared out over all threads of the device, each of which strides on.
//
// A block adds the sums of its threads once, at its end; a second launch adds those of the blocks. All sums are float64, in an order that
// only n and THREADS decide: the same bits in every call, others than on a CPU. Nothing is allocated and nothing waits.
// tests/native compiles this page as C++ with a thread of the host for each of the device, to check sums and races without a GPU.
#ifdef __CUDACC__
#include <cuda_runtime.h>
#define LAUNCH(kernel, grid, stream, ...) \
    kernel<<<static_cast<unsigned>(grid), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define FAILURE() (cudaPeekAtLastError() == cudaSuccess ? nullptr : cudaGetErrorString(cudaGetLastError()))
#define PREFETCH(address) asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(address)))
#define PRAGMA(text) _Pragma(#text)
#define UNROLL(times) PRAGMA(unroll times)
#endif
#include <math.h>

#include "device.hpp"

#ifndef THREADS
#define THREADS 256
#endif

namespace device {

constexpr int WIDEST = 20;  // rows of one pass of observe: for two columns of them and all their sums a thread has registers enough

template <class T>
struct Vectors {  // s, grad_new, grad and rows of the memory, beyond `count` s again
    const T* at[3 + WIDEST];
    int count;
};

namespace {

constexpr int EACH = 4;                             // columns of a thread whose words combine and reach have under way together
constexpr int WARP = 32, LINE = 128;                // threads that read side by side, bytes that the memory gives at a time
constexpr int ROUND = 16, LANES = THREADS / ROUND;  // sums that a block adds at a time, threads that add each of them

static_assert(THREADS % ROUND == 0 && WIDEST % 4 == 0 && 3 + WIDEST <= WARP, "rounds take all threads, a warp has one for each vector");

// put(k, the sum over all threads of mine[k]) for each k, each by one thread; once in a kernel
template <int COUNT, class Put>
__device__ void across(const double (&mine)[COUNT], const Put& put) {
    __shared__ double all[COUNT < ROUND ? COUNT : ROUND][THREADS], few[COUNT][LANES + 1];
    const int lane = threadIdx.x % LANES;
    UNROLL()
    for (int first = 0; first < COUNT; first += ROUND) {
        UNROLL()
        for (int k = 0; k < ROUND; ++k)
            if (first + k < COUNT) all[k][threadIdx.x] = mine[first + k];
        __syncthreads();
        const int k = threadIdx.x / LANES;
        if (first + k < COUNT) {
            double sum = 0.0;
            for (int t = lane; t < THREADS; t += LANES) sum += all[k][t];
            few[first + k][lane] = sum;
        }
        __syncthreads();
    }
    for (int k = threadIdx.x; k < COUNT; k += THREADS) {
        double sum = 0.0;
        for (int t = 0; t < LANES; ++t) sum += few[k][t];
        put(k, sum);
    }
}

// The sums of up to ROWS rows, which are neither s nor y, into sums[block * width + begin ...], the ten into sums[block * width + ten ...].
// While a column is multiplied, the words of the next are under way, and those of the one after on their way into the L2 cache.
template <class T, int ROWS>
__global__ void __launch_bounds__(THREADS, 1)
observe_rows(Vectors<T> from, ptrdiff_t n, T* y, double* sums, int width, int begin, int ten) {
    const ptrdiff_t step = gridDim.x * ptrdiff_t(THREADS);
    const int lane = threadIdx.x % WARP;
    const T* const ahead = from.at[lane < from.count ? lane : 0];
    const auto prefetch = [&](ptrdiff_t j) {  // each lane for one vector, what the whole warp reads of it
        if (lane >= from.count || j - lane + WARP > n) return;
        for (int k = 0; k < WARP; k += LINE / sizeof(T)) PREFETCH(ahead + (j - lane + k));
    };
    double mine[3 * ROWS + 10] = {};
    T next[3 + ROWS];
    ptrdiff_t i = blockIdx.x * ptrdiff_t(THREADS) + threadIdx.x;
    UNROLL()
    for (int k = 0; k < 3 + ROWS; ++k) next[k] = from.at[k][i < n ? i : n - 1];
    prefetch(i + step);
    UNROLL(2)
    while (i < n) {
        const T change = next[1] - next[2];
        const double v[4] = {next[0], change, next[1], next[2]};
        y[i] = change;
        i += step;
        const ptrdiff_t j = i < n ? i : n - 1;
        prefetch(i + step);
        UNROLL()
        for (int k = 0; k < 3; ++k) next[k] = from.at[k][j];
        UNROLL()
        for (int r = 0; r < ROWS; ++r) {
            const double x = next[3 + r];
            next[3 + r] = from.at[3 + r][j];
            UNROLL()
            for (int a = 0; a < 3; ++a) mine[3 * r + a] += x * v[a];
        }
        int k = 3 * ROWS;
        UNROLL()
        for (int a = 0; a < 4; ++a) {
            UNROLL()
            for (int b = a; b < 4; ++b, ++k) mine[k] += v[a] * v[b];
        }
    }
    double* const out = sums + blockIdx.x * ptrdiff_t(width);
    across(mine, [&](int k, double sum) {
        if (k >= 3 * ROWS)
            out[ten + k - 3 * ROWS] = sum;
        else if (k < 3 * (from.count - 3))
            out[begin + k] = sum;
    });
}

template <class T>
__global__ void __launch_bounds__(THREADS, 4)
combine_columns(const T* memory, ptrdiff_t n, Chosen chosen, double factor, const T* grad, T* out, double* sums) {
    double square[1] = {};
    for (ptrdiff_t i = blockIdx.x * ptrdiff_t(EACH * THREADS) + threadIdx.x; i < n; i += gridDim.x * ptrdiff_t(EACH * THREADS)) {
        ptrdiff_t at[EACH];  // the last column again beyond n
        double sum[EACH];
        UNROLL()
        for (int j = 0; j < EACH; ++j) at[j] = i + j * THREADS < n ? i + j * THREADS : n - 1, sum[j] = factor * grad[at[j]];
        UNROLL(4)
        for (int r = 0; r < chosen.count; ++r) {
            const T* const row = memory + chosen.row[r] * n;
            UNROLL()
            for (int j = 0; j < EACH; ++j) sum[j] += chosen.weight[r] * row[at[j]];
        }
        UNROLL()
        for (int j = 0; j < EACH; ++j)
            if (i + j * THREADS < n) {
                const T rounded = static_cast<T>(sum[j]);
                out[at[j]] = rounded;
                square[0] += static_cast<double>(rounded) * rounded;
            }
    }
    across(square, [&](int, double sum) { sums[blockIdx.x] = sum; });
}

template <class T>
__global__ void __launch_bounds__(THREADS, 4)
reach_columns(const T* step, const T* moved, const T* origin, const T* correction, T* reached, T* trial, ptrdiff_t n, double* sums) {
    double mine[2] = {};
    for (ptrdiff_t i = blockIdx.x * ptrdiff_t(EACH * THREADS) + threadIdx.x; i < n; i += gridDim.x * ptrdiff_t(EACH * THREADS)) {
        T v[4][EACH];
        UNROLL()
        for (int j = 0; j < EACH; ++j) {
            const ptrdiff_t at = i + j * THREADS;
            const bool inside = at < n;  // what is beyond stays zero
            v[0][j] = inside ? step[at] : T(0), v[1][j] = inside ? moved[at] : T(0);
            v[2][j] = inside ? origin[at] : T(0), v[3][j] = inside ? correction[at] : T(0);
        }
        UNROLL()
        for (int j = 0; j < EACH; ++j)
            if (i + j * THREADS < n) {
                const T x = v[1][j] + v[0][j];
                reached[i + j * THREADS] = x, trial[i + j * THREADS] = v[2][j] + x;
                mine[0] += static_cast<double>(x) * x, mine[1] += static_cast<double>(v[3][j]) * x;
            }
    }
    across(mine, [&](int k, double sum) { sums[blockIdx.x * 2 + k] = sum; });
}

template <class T>
__global__ void __launch_bounds__(THREADS)
blend_columns(T* momentum, const T* fresh, const T* kept, const T* grad, T share, ptrdiff_t n, double* sums) {
    double mine[1] = {};
    for (ptrdiff_t i = blockIdx.x * ptrdiff_t(THREADS) + threadIdx.x; i < n; i += gridDim.x * ptrdiff_t(THREADS)) {
        const T blended = momentum[i] + share * (fresh[i] - kept[i] + grad[i] - momentum[i]);
        momentum[i] = blended;
        mine[0] += static_cast<double>(blended) * blended;
    }
    across(mine, [&](int, double sum) { sums[blockIdx.x] = sum; });
}

template <class T>
__global__ void __launch_bounds__(THREADS)
square_columns(const T* vector, ptrdiff_t n, double* sums) {
    double mine[1] = {};
    for (ptrdiff_t i = blockIdx.x * ptrdiff_t(THREADS) + threadIdx.x; i < n; i += gridDim.x * ptrdiff_t(THREADS))
        mine[0] += static_cast<double>(vector[i]) * vector[i];
    across(mine, [&](int, double sum) { sums[blockIdx.x] = sum; });
}

// Each block adds the parts of the square by itself, all in the same order: a launch less, and they are few
template <class T>
__global__ void __launch_bounds__(THREADS)
advance_columns(T* point, const T* direction, const T* stride, const double* parts, ptrdiff_t count, ptrdiff_t n) {
    __shared__ double square;
    double mine[1] = {};
    for (ptrdiff_t t = threadIdx.x; t < count; t += THREADS) mine[0] += parts[t];
    across(mine, [&](int, double sum) { square = sum; });
    __syncthreads();
    const double length = sqrt(square), least = sizeof(T) == 4 ? 1.17549435e-38 : 2.2250738585072014e-308;  // normal numbers
    const T factor = static_cast<T>(static_cast<double>(*stride) / (length < least ? least : length));
    for (ptrdiff_t i = blockIdx.x * ptrdiff_t(THREADS) + threadIdx.x; i < n; i += gridDim.x * ptrdiff_t(THREADS))
        point[i] -= factor * direction[i];
}

// Where the parts have result k of observe, whose rows s and y, if used, are among the ten products; `kept` rows are not
__device__ int column(int k, int used, int kept, int spare) {
    const int row = k / 3, of = k % 3;
    if (row >= used) return k - 3 * (used - kept);
    if (row == spare) return 3 * kept + of;
    if (row == spare + 1) return 3 * kept + (of ? 3 + of : 1);
    return row < spare ? k : k - 6;
}

// sums[k] = sum over the parts of their column(k); block k does it for one k
__global__ void __launch_bounds__(THREADS)
add_parts(const double* parts, ptrdiff_t count, int used, int kept, int spare, int width, double* sums) {
    double mine[1] = {};
    const int k = column(blockIdx.x, used, kept, spare);
    for (ptrdiff_t t = threadIdx.x; t < count; t += THREADS) mine[0] += parts[t * width + k];
    across(mine, [&](int, double sum) { sums[blockIdx.x] = sum; });
}

}  // namespace

template <class T>
const char* observe(const T* memory, ptrdiff_t n, int used, int spare, T* y, const T* grad, const T* grad_new, double* sums, void* stream) {
    const int kept = used <= spare ? used : used == spare + 1 ? spare : used - 2, width = 3 * kept + 10;
    double* const all = sums + 3 * used + 10;
    using Pass = void (*)(Vectors<T>, ptrdiff_t, T*, double*, int, int, int);
    const Pass passes[] = {observe_rows<T, 4>, observe_rows<T, 8>, observe_rows<T, 12>, observe_rows<T, 16>, observe_rows<T, WIDEST>};
    for (int first = 0; first == 0 || first < kept; first += WIDEST) {
        const int rows = kept - first < WIDEST ? kept - first : WIDEST;
        Vectors<T> from{{memory + spare * n, grad_new, grad}, 3 + rows};
        for (int k = 0, r = first; k < WIDEST; ++k, ++r) from.at[3 + k] = k < rows ? memory + (r < spare ? r : r + 2) * n : from.at[0];
        const Pass pass = passes[rows ? (rows - 1) / 4 : 0];
        LAUNCH(pass, parts(n), stream, from, n, y, all, width, 3 * first, 3 * kept);
    }
    LAUNCH(add_parts, 3 * used + 10, stream, all, parts(n), used, kept, spare, width, sums);
    return FAILURE();
}

template <class T>
const char* combine(const T* memory, ptrdiff_t n, const Chosen& chosen, double factor, const T* grad, T* out, double* sums, void* stream) {
    LAUNCH(combine_columns, parts(n), stream, memory, n, chosen, factor, grad, out, sums + 1);
    LAUNCH(add_parts, 1, stream, sums + 1, parts(n), 0, 0, 0, 1, sums);
    return FAILURE();
}

template <class T>
const char* reach(const T* step, const T* moved, const T* origin, const T* correction, T* reached, T* trial, ptrdiff_t n, double* sums, void* stream) {
    LAUNCH(reach_columns, parts(n), stream, step, moved, origin, correction, reached, trial, n, sums + 2);
    LAUNCH(add_parts, 2, stream, sums + 2, parts(n), 0, 0, 0, 2, sums);
    return FAILURE();
}

template <class T>
const char* blend(T* momentum, const T* fresh, const T* kept, const T* grad, double beta, ptrdiff_t n, double* squares, void* stream) {
    LAUNCH(blend_columns, parts(n), stream, momentum, fresh, kept, grad, static_cast<T>(1 - beta), n, squares);
    return FAILURE();
}

template <class T>
const char* square(const T* vector, ptrdiff_t n, double* squares, void* stream) {
    LAUNCH(square_columns, parts(n), stream, vector, n, squares);
    return FAILURE();
}

template <class T>
const char* advance(T* point, const T* direction, const T* stride, const double* squares, ptrdiff_t count, ptrdiff_t n, void* stream) {
    LAUNCH(advance_columns, parts(n), stream, point, direction, stride, squares, count, n);
    return FAILURE();
}

template const char* observe(const float*, ptrdiff_t, int, int, float*, const float*, const float*, double*, void*);
template const char* observe(const double*, ptrdiff_t, int, int, double*, const double*, const double*, double*, void*);
template const char* combine(const float*, ptrdiff_t, const Chosen&, double, const float*, float*, double*, void*);
template const char* combine(const double*, ptrdiff_t, const Chosen&, double, const double*, double*, double*, void*);
template const char* reach(const float*, const float*, const float*, const float*, float*, float*, ptrdiff_t, double*, void*);
template const char* reach(const double*, const double*, const double*, const double*, double*, double*, ptrdiff_t, double*, void*);
template const char* blend(float*, const float*, const float*, const float*, double, ptrdiff_t, double*, void*);
template const char* blend(double*, const double*, const double*, const double*, double, ptrdiff_t, double*, void*);
template const char* square(const float*, ptrdiff_t, double*, void*);
template const char* square(const double*, ptrdiff_t, double*, void*);
template const char* advance(float*, const float*, const float*, const double*, ptrdiff_t, ptrdiff_t, void*);
template const char* advance(double*, const double*, const double*, const double*, ptrdiff_t, ptrdiff_t, void*);

}  // namespace device
