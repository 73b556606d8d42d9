// The loops, compiled once for each level of the instruction set (APTS_LEVEL) and chosen at run time by module.cpp.
//
// Sums are float64. Their order is fixed: lanes within a block of BLOCK columns (of reach and blend in parts of PART), blocks pairwise.
// Threads share out whole blocks, so their number does not move a bit. Nothing of the standard library is used here: an inline function of it, compiled for a
// newer processor, could end up serving all levels.
#include "kernels.hpp"

#include <stddef.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define NAME2(name, level) name##_##level
#define NAME1(name, level) NAME2(name, level)
#define NAME(name) NAME1(name, APTS_LEVEL)

namespace {

#include "lanes.hpp"

constexpr ptrdiff_t PART = 512;  // columns that are written and then summed: the sums find them in the first cache

// the products of some rows with the three vectors of a block
template <class T, int ROWS>
INLINE void against(const T* const row[ROWS], const T* s, const T* y, const T* g, ptrdiff_t count, double* const out[ROWS]) {
    lanes sums[ROWS][3] = {};
    ptrdiff_t i = 0;
    for (; i + LINE<T> <= count; i += LINE<T>) {
        for (int r = 0; r < ROWS; ++r) ahead(row[r] + i);
        for (ptrdiff_t j = i; j < i + LINE<T>; j += WIDTH) {
            lanes a, b, c, x;
            load(a, s + j), load(b, y + j), load(c, g + j);
            for (int r = 0; r < ROWS; ++r) {
                load(x, row[r] + j);
                sums[r][0] += x * a, sums[r][1] += x * b, sums[r][2] += x * c;
            }
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        double tail[3] = {across(sums[r][0]), across(sums[r][1]), across(sums[r][2])};
        for (ptrdiff_t j = i; j < count; ++j) {
            const double x = row[r][j];
            tail[0] += x * s[j], tail[1] += x * y[j], tail[2] += x * g[j];
        }
        for (int v = 0; v < 3; ++v) out[r][v] += tail[v];
    }
}

// 10 products of (s, y, g_new, g) among each other, upper triangle by rows
template <class T>
INLINE void among(const T* const v[4], ptrdiff_t count, double* out) {
    lanes sums[10] = {};
    ptrdiff_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        lanes x[4];
        for (int a = 0; a < 4; ++a) load(x[a], v[a] + i);
        for (int a = 0, k = 0; a < 4; ++a)
            for (int b = a; b < 4; ++b, ++k) sums[k] += x[a] * x[b];
    }
    for (int a = 0, k = 0; a < 4; ++a)
        for (int b = a; b < 4; ++b, ++k) {
            double tail = across(sums[k]);
            for (ptrdiff_t j = i; j < count; ++j) tail += static_cast<double>(v[a][j]) * v[b][j];
            out[k] += tail;
        }
}

// act(b) for all blocks; several threads, if there are to be several, take whole blocks
template <class Act>
void each_block(ptrdiff_t blocks, int threads, const Act& act) {
#ifdef EACH_BLOCK  // threads that ThreadSanitizer can follow: tests/native
    EACH_BLOCK(blocks, threads, act);
#else
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (ptrdiff_t b = 0; b < blocks; ++b) act(b);
#endif
}

// the products of all rows from r on with the vectors of a block, so many rows at a time; the first row that is left
template <int ROWS, class T>
INLINE ptrdiff_t observe_rows(const Observe<T>& o, ptrdiff_t r, ptrdiff_t first, ptrdiff_t count, double* sums) {
    for (; r + ROWS <= o.used; r += ROWS) {
        const T* rows[ROWS];
        double* out[ROWS];
        for (int k = 0; k < ROWS; ++k) rows[k] = o.rows + (r + k) * o.stride + first, out[k] = sums + 3 * (r + k);
        against<T, ROWS>(rows, o.s + first, o.y + first, o.grad_new + first, count, out);
    }
    return r;
}

template <class T>
void observe_block(const Observe<T>& o, ptrdiff_t first, ptrdiff_t last, double* sums) {
    const ptrdiff_t count = last - first;
    const T *const s = o.s + first, *const g = o.grad_new + first, *const old = o.grad + first;
    T* const y = o.y + first;
    double* const small = sums + 3 * o.used;
    for (ptrdiff_t i = 0; i < 3 * o.used + 10; ++i) sums[i] = 0.0;
    for (ptrdiff_t j = 0; j < count; ++j) y[j] = g[j] - old[j];
    const T* const vectors[4] = {s, y, g, old};
    among(vectors, count, small);
    ptrdiff_t r = observe_rows<TOGETHER>(o, 0, first, count, sums);
    r = observe_rows<2>(o, r, first, count, sums);
    observe_rows<1>(o, r, first, count, sums);
}

// sum += weights of some rows times these
template <class T, int ROWS>
INLINE void add_rows(const T* const row[ROWS], const double* weights, ptrdiff_t count, double* sum) {
    ptrdiff_t i = 0;
    for (; i + LINE<T> <= count; i += LINE<T>) {
        for (int r = 0; r < ROWS; ++r) ahead(row[r] + i);
        for (ptrdiff_t j = i; j < i + LINE<T>; j += WIDTH) {
            lanes total, x;
            load(total, sum + j);
            for (int r = 0; r < ROWS; ++r) load(x, row[r] + j), total += weights[r] * x;
            store(sum + j, total);
        }
    }
    for (ptrdiff_t j = i; j < count; ++j)
        for (int r = 0; r < ROWS; ++r) sum[j] += weights[r] * row[r][j];
}

// sum += weights of all rows from r on times these, so many rows at a time; the first row that is left
template <int ROWS, class T>
INLINE ptrdiff_t combine_rows(const Combine<T>& c, ptrdiff_t r, ptrdiff_t first, ptrdiff_t count, double* sum) {
    for (; r + ROWS <= c.used; r += ROWS) {
        const T* rows[ROWS];
        for (int k = 0; k < ROWS; ++k) rows[k] = c.rows[r + k] + first;
        add_rows<T, ROWS>(rows, c.weights + r, count, sum);
    }
    return r;
}

template <class T>
double combine_block(const Combine<T>& c, ptrdiff_t first, ptrdiff_t last) {
    const ptrdiff_t count = last - first;
    T* const out = c.out + first;
    double sum[BLOCK];
    for (ptrdiff_t j = 0; j < count; ++j) sum[j] = c.factor * c.grad[first + j];
    const ptrdiff_t r = combine_rows<TOGETHER>(c, 0, first, count, sum);
    combine_rows<1>(c, r, first, count, sum);
    lanes squares = {};
    ptrdiff_t j = 0;
    for (; j + WIDTH <= count; j += WIDTH) {
        lanes x;
        load(x, sum + j);
        store(out + j, x);
        load(x, out + j);
        squares += x * x;
    }
    double square = across(squares);
    for (; j < count; ++j) {
        out[j] = static_cast<T>(sum[j]);
        square += static_cast<double>(out[j]) * out[j];
    }
    return square;
}

template <class T>
void reach_block(const Reach<T>& r, ptrdiff_t first, ptrdiff_t last, double* out) {
    double found[2] = {};
    for (ptrdiff_t start = first; start < last; start += PART) {
        const ptrdiff_t count = last - start < PART ? last - start : PART;
        T *const __restrict__ reached = r.reached + start, *const __restrict__ trial = r.trial + start;
        const T *const __restrict__ step = r.step + start, *const __restrict__ moved = r.moved + start;
        const T *const __restrict__ origin = r.origin + start, *const __restrict__ correction = r.correction + start;
        for (ptrdiff_t j = 0; j < count; ++j) reached[j] = moved[j] + step[j], trial[j] = origin[j] + reached[j];
        lanes sums[2] = {};
        ptrdiff_t j = 0;
        for (; j + WIDTH <= count; j += WIDTH) {
            lanes x, c;
            load(x, reached + j), load(c, correction + j);
            sums[0] += x * x, sums[1] += c * x;
        }
        double tail[2] = {across(sums[0]), across(sums[1])};
        for (; j < count; ++j) tail[0] += static_cast<double>(reached[j]) * reached[j], tail[1] += static_cast<double>(correction[j]) * reached[j];
        found[0] += tail[0], found[1] += tail[1];
    }
    out[0] = found[0], out[1] = found[1];
}

template <class T>
double blend_block(const Blend<T>& b, ptrdiff_t first, ptrdiff_t last) {
    const T keep = static_cast<T>(b.beta), take = static_cast<T>(1.0 - b.beta);
    double square = 0.0;
    for (ptrdiff_t start = first; start < last; start += PART) {
        const ptrdiff_t count = last - start < PART ? last - start : PART;
        T* const __restrict__ m = b.momentum + start;
        const T *const __restrict__ fresh = b.fresh + start, *const __restrict__ kept = b.kept + start, *const __restrict__ grad = b.grad + start;
        for (ptrdiff_t j = 0; j < count; ++j) m[j] = keep * m[j] + take * (fresh[j] - kept[j] + grad[j]);
        lanes sums = {};
        ptrdiff_t j = 0;
        for (; j + WIDTH <= count; j += WIDTH) {
            lanes x;
            load(x, m + j);
            sums += x * x;
        }
        double tail = across(sums);
        for (; j < count; ++j) tail += static_cast<double>(m[j]) * m[j];
        square += tail;
    }
    return square;
}

// sum(first, last, sums) for the columns of each block, `width` sums each; the total into the first row of `sums`
template <class Sum>
INLINE void in_blocks(ptrdiff_t n, ptrdiff_t width, int threads, double* sums, const Sum& sum) {
    const ptrdiff_t blocks = (n + BLOCK - 1) / BLOCK;
    each_block(blocks, threads, [&](ptrdiff_t b) { sum(b * BLOCK, (b + 1) * BLOCK < n ? (b + 1) * BLOCK : n, sums + b * width); });
    pairwise(sums, 0, blocks, width);
}

template <class T>
INLINE void observe(const Observe<T>& o, double* sums) {
    in_blocks(o.n, 3 * o.used + 10, o.threads, sums, [&](ptrdiff_t first, ptrdiff_t last, double* at) { observe_block<T>(o, first, last, at); });
}

template <class T>
INLINE void combine(const Combine<T>& c, double* sums) {
    in_blocks(c.n, 1, c.threads, sums, [&](ptrdiff_t first, ptrdiff_t last, double* at) { *at = combine_block<T>(c, first, last); });
}

template <class T>
INLINE void reach(const Reach<T>& r, double* sums) {
    in_blocks(r.n, 2, r.threads, sums, [&](ptrdiff_t first, ptrdiff_t last, double* at) { reach_block<T>(r, first, last, at); });
}

template <class T>
INLINE void blend(const Blend<T>& m, double* sums) {
    in_blocks(m.n, 1, m.threads, sums, [&](ptrdiff_t first, ptrdiff_t last, double* at) { *at = blend_block<T>(m, first, last); });
}

}  // namespace

void NAME(observe)(const Observe<float>& o, double* sums) { observe(o, sums); }
void NAME(observe)(const Observe<double>& o, double* sums) { observe(o, sums); }
void NAME(combine)(const Combine<float>& c, double* sums) { combine(c, sums); }
void NAME(combine)(const Combine<double>& c, double* sums) { combine(c, sums); }
void NAME(reach)(const Reach<float>& r, double* sums) { reach(r, sums); }
void NAME(reach)(const Reach<double>& r, double* sums) { reach(r, sums); }
void NAME(blend)(const Blend<float>& m, double* sums) { blend(m, sums); }
void NAME(blend)(const Blend<double>& m, double* sums) { blend(m, sums); }
