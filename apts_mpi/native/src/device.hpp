// What the kernels of a GPU are given; module_cuda.cpp checks it. Pointers are of the device, sizes in elements; `sums` is room for
// room(n, width) numbers, of which the first `width` are the result once the stream has come so far. Nothing here waits.
#pragma once

#include <stddef.h>

namespace device {

constexpr int MOST = 128;  // rows that one combination may take

// thread blocks that share n columns out: enough for every GPU, few to add up; and the numbers of room that `width` sums of each need
constexpr ptrdiff_t parts(ptrdiff_t n) { return n < 1024 * 528 ? (n + 1023) / 1024 : 528; }
constexpr ptrdiff_t room(ptrdiff_t n, ptrdiff_t width) { return (parts(n) + 1) * width; }

struct Chosen {  // passed by value: no copy to the device of its own
    ptrdiff_t row[MOST];
    double weight[MOST];
    int count;
};

// As kernels.hpp has them: observe gives 3 used + 10 sums, combine one, reach two. They return nullptr, or the reason why nothing was started.
template <class T>
const char* observe(const T* memory, ptrdiff_t n, int used, int spare, T* y, const T* grad, const T* grad_new, double* sums, void* stream);
template <class T>
const char* combine(const T* memory, ptrdiff_t n, const Chosen& chosen, double factor, const T* grad, T* out, double* sums, void* stream);
template <class T>
const char* reach(const T* step, const T* moved, const T* origin, const T* correction, T* reached, T* trial, ptrdiff_t n, double* sums, void* stream);

// A step of the sweep. `squares`: one number of each of the parts(n) blocks, of which the sum is the square of the vector.
// blend: momentum = beta momentum + (1 - beta) (fresh - kept + grad). advance: point -= *stride direction / ||direction||.
template <class T>
const char* blend(T* momentum, const T* fresh, const T* kept, const T* grad, double beta, ptrdiff_t n, double* squares, void* stream);
template <class T>
const char* square(const T* vector, ptrdiff_t n, double* squares, void* stream);
template <class T>
const char* advance(T* point, const T* direction, const T* stride, const double* squares, ptrdiff_t count, ptrdiff_t n, void* stream);

}  // namespace device
