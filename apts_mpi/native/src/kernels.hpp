// What the kernels are given; module.cpp checks it. Sizes are in elements.
#pragma once

#include <stddef.h>

constexpr ptrdiff_t BLOCK = 8192;  // columns that one thread sums

// y = g_new - g, and products[r] = rows[r]'(s, y, g_new) for r < used, then the upper triangle of (s, y, g_new, g) squared.
// sums: (blocks, 3 used + 10); the result is its first row.
template <class T>
struct Observe {
    const T* rows;
    ptrdiff_t stride, used;
    const T *s, *grad_new, *grad;
    T* y;
    ptrdiff_t n;
    int threads;
};

// out = factor grad + sum_r weights[r] rows[r], and out'out. sums: (blocks,)
template <class T>
struct Combine {
    const T* const* rows;
    const double* weights;
    ptrdiff_t used;
    const T* grad;
    double factor;
    T* out;
    ptrdiff_t n;
    int threads;
};

// reached = moved + step, trial = origin + reached; reached'reached and correction'reached. sums: (blocks, 2)
template <class T>
struct Reach {
    const T *step, *moved, *origin, *correction;
    T *reached, *trial;
    ptrdiff_t n;
    int threads;
};

// momentum = beta momentum + (1 - beta) (fresh - kept + grad), and momentum'momentum. sums: (blocks,)
template <class T>
struct Blend {
    T* momentum;
    const T *fresh, *kept, *grad;
    double beta;
    ptrdiff_t n;
    int threads;
};

#define DECLARE(level)                                      \
    void observe_##level(const Observe<float>&, double*);   \
    void observe_##level(const Observe<double>&, double*);  \
    void combine_##level(const Combine<float>&, double*);   \
    void combine_##level(const Combine<double>&, double*);  \
    void reach_##level(const Reach<float>&, double*);       \
    void reach_##level(const Reach<double>&, double*);      \
    void blend_##level(const Blend<float>&, double*);       \
    void blend_##level(const Blend<double>&, double*);

DECLARE(base)
DECLARE(v3)
DECLARE(v4)
