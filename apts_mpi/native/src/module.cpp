// The border to Python: checks what comes in, chooses the level of the instruction set, lets other threads run meanwhile.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T> using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T> using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

int level() {
#ifdef APTS_X86_LEVELS
    __builtin_cpu_init();
    static const int found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
            && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") ? 4
        : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi")
            && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt") ? 3 : 0;
    return found;
#else
    return 0;
#endif
}

#ifdef APTS_X86_LEVELS
#define RUN(kernel, given, sums) (level() == 4 ? kernel##_v4(given, sums) : level() == 3 ? kernel##_v3(given, sums) : kernel##_base(given, sums))
#else
#define RUN(kernel, given, sums) kernel##_base(given, sums)
#endif

void need(bool fine, const char* words) {
    if (!fine) throw std::invalid_argument(words);
}

ptrdiff_t blocks_of(ptrdiff_t n) { return (n + BLOCK - 1) / BLOCK; }

template <class T>
nb::object observe(Matrix<T> memory, ptrdiff_t used, ptrdiff_t spare, Vector<const T> grad, Vector<const T> grad_new, int threads) {
    const ptrdiff_t rows = memory.shape(0), n = memory.shape(1);
    need(static_cast<ptrdiff_t>(grad.shape(0)) == n && static_cast<ptrdiff_t>(grad_new.shape(0)) == n, "gradients must have as many entries as the memory has columns");
    need(used >= 0 && used <= rows && spare >= 0 && spare + 1 < rows, "used and spare must be rows of the memory");
    need(threads >= 1 && n >= 1, "need at least one thread and one column");
    T* all = memory.data();
    const Observe<T> given{all, n, used, all + spare * n, grad_new.data(), grad.data(), all + (spare + 1) * n, n, threads};
    std::vector<double> sums(blocks_of(n) * (3 * used + 10));
    {
        nb::gil_scoped_release released;
        RUN(observe, given, sums.data());
    }
    nb::list found;
    for (ptrdiff_t i = 0; i < 3 * used + 10; ++i) found.append(sums[i]);
    return std::move(found);
}

template <class T>
double combine(Matrix<const T> memory, const std::vector<ptrdiff_t>& chosen, const std::vector<double>& weights, double factor, Vector<const T> grad, Vector<T> out, int threads) {
    const ptrdiff_t rows = memory.shape(0), n = memory.shape(1);
    need(static_cast<ptrdiff_t>(grad.shape(0)) == n && static_cast<ptrdiff_t>(out.shape(0)) == n, "vectors must have as many entries as the memory has columns");
    need(chosen.size() == weights.size(), "one weight a row");
    need(threads >= 1 && n >= 1, "need at least one thread and one column");
    std::vector<const T*> at;
    for (const ptrdiff_t row : chosen) {
        need(row >= 0 && row < rows, "rows must be of the memory");
        at.push_back(memory.data() + row * n);
    }
    const Combine<T> given{at.data(), weights.data(), static_cast<ptrdiff_t>(at.size()), grad.data(), factor, out.data(), n, threads};
    std::vector<double> sums(blocks_of(n));
    nb::gil_scoped_release released;
    RUN(combine, given, sums.data());
    return sums[0];
}

template <class T>
double correct(Vector<T> grad, Vector<const T> correction, Vector<const T> theta, Vector<const T> origin, int threads) {
    const size_t n = grad.shape(0);
    need(correction.shape(0) == n && theta.shape(0) == n && origin.shape(0) == n, "vectors must have the same length");
    need(threads >= 1 && n >= 1, "need at least one thread and one entry");
    const Correct<T> given{grad.data(), correction.data(), theta.data(), origin.data(), static_cast<ptrdiff_t>(n), threads};
    std::vector<double> sums(blocks_of(given.n));
    nb::gil_scoped_release released;
    RUN(correct, given, sums.data());
    return sums[0];
}

template <class T>
double blend(Vector<T> momentum, Vector<const T> fresh, Vector<const T> kept, Vector<const T> grad, double beta, int threads) {
    const size_t n = momentum.shape(0);
    need(fresh.shape(0) == n && kept.shape(0) == n && grad.shape(0) == n, "vectors must have the same length");
    need(threads >= 1 && n >= 1, "need at least one thread and one entry");
    const Blend<T> given{momentum.data(), fresh.data(), kept.data(), grad.data(), beta, static_cast<ptrdiff_t>(n), threads};
    std::vector<double> sums(blocks_of(given.n));
    nb::gil_scoped_release released;
    RUN(blend, given, sums.data());
    return sums[0];
}

template <class T>
void define(nb::module_& m) {
    m.def("blend_", &blend<T>, "momentum"_a.noconvert(), "fresh"_a.noconvert(), "kept"_a.noconvert(), "grad"_a.noconvert(), "beta"_a, "threads"_a);
    m.def("observe_", &observe<T>, "memory"_a.noconvert(), "used"_a, "spare"_a, "grad"_a.noconvert(), "grad_new"_a.noconvert(), "threads"_a);
    m.def("combine_", &combine<T>, "memory"_a.noconvert(), "chosen"_a, "weights"_a, "factor"_a, "grad"_a.noconvert(), "out"_a.noconvert(), "threads"_a);
    m.def("correct_", &correct<T>, "grad"_a.noconvert(), "correction"_a.noconvert(), "theta"_a.noconvert(), "origin"_a.noconvert(), "threads"_a);
}

}  // namespace

#ifdef APTS_CUDA
void define_cuda(nb::module_& m);  // module_cuda.cpp
#endif

NB_MODULE(_kernels, m) {
    m.def("level", [] { return level() == 4 ? std::string("x86-64-v4") : level() == 3 ? std::string("x86-64-v3") : std::string("base"); });
    define<float>(m);
    define<double>(m);
#ifdef APTS_CUDA
    define_cuda(m);
    m.attr("cuda") = true;
#else
    m.attr("cuda") = false;
#endif
}
