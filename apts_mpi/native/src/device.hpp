// What the kernels of a GPU are given; module_cuda.cpp checks it. Pointers are of the device, sizes in elements; `sums` is room for
// room(n, width) numbers, of which the first `width` are the result once the stream has come so far. Nothing here waits.
#pragma once

#include <stddef.h>

namespace device {

constexpr int MOST = 128;  // rows that one combination may take

// columns that one thread block sums, and the numbers of room that n columns with `width` sums each need
constexpr ptrdiff_t TILE = 2048;
constexpr ptrdiff_t tiles(ptrdiff_t n) { return (n + TILE - 1) / TILE; }
constexpr ptrdiff_t room(ptrdiff_t n, ptrdiff_t width) { return (tiles(n) + 1) * width; }

struct Chosen {  // passed by value: no copy to the device of its own
    ptrdiff_t row[MOST];
    double weight[MOST];
    int count;
};

// As kernels.hpp has them: observe gives 3 used + 10 sums, the others one. They return nullptr, or the reason why nothing was started.
template <class T>
const char* observe(const T* memory, ptrdiff_t n, int used, int spare, T* y, const T* grad, const T* grad_new, double* sums, void* stream);
template <class T>
const char* combine(const T* memory, ptrdiff_t n, const Chosen& chosen, double factor, const T* grad, T* out, double* sums, void* stream);
template <class T>
const char* correct(T* grad, const T* correction, const T* theta, const T* origin, ptrdiff_t n, double* sums, void* stream);

}  // namespace device
