// The border to Python: checks what comes in, chooses the level of the instruction set, lets other threads run meanwhile.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels.hpp"
#include "small.hpp"

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
std::vector<double> reach(Vector<const T> step, Vector<const T> moved, Vector<const T> origin, Vector<const T> correction, Vector<T> reached, Vector<T> trial, int threads) {
    const size_t n = step.shape(0);
    need(moved.shape(0) == n && origin.shape(0) == n && correction.shape(0) == n && reached.shape(0) == n && trial.shape(0) == n, "vectors must have the same length");
    need(threads >= 1 && n >= 1, "need at least one thread and one entry");
    const Reach<T> given{step.data(), moved.data(), origin.data(), correction.data(), reached.data(), trial.data(), static_cast<ptrdiff_t>(n), threads};
    std::vector<double> sums(2 * blocks_of(given.n));
    {
        nb::gil_scoped_release released;
        RUN(reach, given, sums.data());
    }
    return {sums[0], sums[1]};
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
    m.def("reach_", &reach<T>, "step"_a.noconvert(), "moved"_a.noconvert(), "origin"_a.noconvert(), "correction"_a.noconvert(), "reached"_a.noconvert(), "trial"_a.noconvert(), "threads"_a);
}

// small matrices: float64 arrays of numpy, of any strides
using Row = nb::ndarray<const double, nb::ndim<1>, nb::device::cpu>;
using Square = nb::ndarray<const double, nb::ndim<2>, nb::device::cpu>;

small::Vector view(const Row& a) { return {a.data(), static_cast<ptrdiff_t>(a.stride(0))}; }
small::Matrix view(const Square& a) { return {a.data(), static_cast<ptrdiff_t>(a.stride(0)), static_cast<ptrdiff_t>(a.stride(1))}; }

small::Gram gram_of(const Square& ss, const Square& sy, const Square& yy) {
    const size_t k = ss.shape(0);
    need(ss.shape(1) == k && sy.shape(0) == k && sy.shape(1) == k && yy.shape(0) == k && yy.shape(1) == k, "need three square matrices of one size");
    return {static_cast<ptrdiff_t>(k), view(ss), view(sy), view(yy)};
}

// hands numbers over to Python: where they lie, and who frees them
template <class T>
std::pair<T*, nb::capsule> given(std::vector<T>&& numbers) {
    auto kept = std::make_unique<std::vector<T>>(std::move(numbers));
    T* const data = kept->data();
    nb::capsule owner(kept.get(), [](void* at) noexcept { delete static_cast<std::vector<T>*>(at); });
    kept.release();
    return {data, owner};
}

template <class T>
nb::object array(std::vector<T>&& numbers, size_t length) {
    const auto [data, owner] = given(std::move(numbers));
    return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, {length}, owner));
}

// (down, right), column by column
nb::object columns(small::Numbers&& numbers, size_t down, size_t right) {
    const auto [data, owner] = given(std::move(numbers));
    return nb::cast(nb::ndarray<nb::numpy, double, nb::ndim<2>>(data, {down, right}, owner, {1, static_cast<int64_t>(down)}));
}

nb::tuple sr1(const Square& ss, const Square& sy, const Square& yy, double gamma, double noise) {
    small::Compact found = small::sr1(gram_of(ss, sy, yy), gamma, noise);
    const size_t r = found.used.size();
    return nb::make_tuple(array(std::move(found.used), r), columns(std::move(found.p), ss.shape(0), r), array(std::move(found.delta), r));
}

nb::tuple spectrum(const Square& ss, const Square& sy, const Square& yy, double gamma, const std::vector<ptrdiff_t>& used, const Square& p,
    const Row& delta, double noise, double cut, ptrdiff_t n_params) {
    const small::Gram gram = gram_of(ss, sy, yy);
    const size_t r = used.size();
    for (const ptrdiff_t pair : used) need(pair >= 0 && pair < gram.k, "pairs must be of the Gram matrices");
    need(p.shape(0) == ss.shape(0) && p.shape(1) == r && delta.shape(0) == r, "p must be (pairs, used), delta (used,)");
    small::Spectrum found = small::spectrum(gram, gamma, used, view(p), view(delta), noise, cut, n_params);
    const size_t kept = found.eigenvalues.size();
    return nb::make_tuple(array(std::move(found.eigenvalues), kept), columns(std::move(found.basis), gram.k, kept), found.noise);
}

nb::tuple minimise(const Square& ss, const Square& sy, const Square& yy, double gamma, const Row& eigenvalues, const Square& basis, double noise,
    const Row& sg, const Row& yg, double gg, ptrdiff_t n_params, double radius) {
    const small::Gram gram = gram_of(ss, sy, yy);
    const size_t k = gram.k, r = eigenvalues.shape(0);
    need(basis.shape(0) == k && basis.shape(1) == r && sg.shape(0) == k && yg.shape(0) == k, "basis must be (pairs, eigenvalues), products (pairs,)");
    small::Step step = small::minimise(gram, gamma, r, view(eigenvalues), view(basis), noise, {view(sg), view(yg), gg}, n_params, radius);
    small::Solution& found = step.solution;
    const size_t q = found.coefficients.size();
    return nb::make_tuple(
        nb::make_tuple(array(std::move(found.coefficients), q), found.sigma, found.predicted, found.step_norm, found.curvature,
            found.hits_boundary, found.hard_case, found.finite, found.iterations),
        nb::make_tuple(step.grad, array(std::move(step.s), k), array(std::move(step.y), k)));
}

void define_small(nb::module_& m) {
    m.def("sr1", &sr1, "ss"_a.noconvert(), "sy"_a.noconvert(), "yy"_a.noconvert(), "gamma"_a, "noise"_a);
    m.def("spectrum", &spectrum, "ss"_a.noconvert(), "sy"_a.noconvert(), "yy"_a.noconvert(), "gamma"_a, "used"_a, "p"_a.noconvert(),
        "delta"_a.noconvert(), "noise"_a, "cut"_a, "n_params"_a);
    m.def("minimise", &minimise, "ss"_a.noconvert(), "sy"_a.noconvert(), "yy"_a.noconvert(), "gamma"_a, "eigenvalues"_a.noconvert(),
        "basis"_a.noconvert(), "noise"_a, "sg"_a.noconvert(), "yg"_a.noconvert(), "gg"_a, "n_params"_a, "radius"_a);
}

}  // namespace

#ifdef APTS_CUDA
void define_cuda(nb::module_& m);  // module_cuda.cpp
#endif

NB_MODULE(_kernels, m) {
    m.def("level", [] { return level() == 4 ? std::string("x86-64-v4") : level() == 3 ? std::string("x86-64-v3") : std::string("base"); });
    define<float>(m);
    define<double>(m);
    define_small(m);
#ifdef APTS_CUDA
    define_cuda(m);
    m.attr("cuda") = true;
#else
    m.attr("cuda") = false;
#endif
}
