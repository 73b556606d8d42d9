// The border to Python of the kernels of a GPU: checks what comes in and starts them on the stream that the caller names.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <vector>

#include "device.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T> using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cuda>;
template <class T> using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cuda>;
using Sums = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cuda>;

void need(bool fine, const char* words) {
    if (!fine) throw std::invalid_argument(words);
}

void started(const char* why) {
    if (why) throw std::runtime_error(why);
}

void* at(size_t stream) { return reinterpret_cast<void*>(stream); }

template <class T>
void observe(Matrix<T> memory, ptrdiff_t used, ptrdiff_t spare, Vector<const T> grad, Vector<const T> grad_new, Sums sums, size_t stream) {
    const ptrdiff_t rows = memory.shape(0), n = memory.shape(1);
    need(static_cast<ptrdiff_t>(grad.shape(0)) == n && static_cast<ptrdiff_t>(grad_new.shape(0)) == n, "gradients must have as many entries as the memory has columns");
    need(used >= 0 && used <= rows && spare >= 0 && spare + 1 < rows && n >= 1, "used and spare must be rows of the memory");
    need(static_cast<ptrdiff_t>(sums.shape(0)) >= device::room(n, 3 * used + 10), "not room enough for the sums");
    T* const all = memory.data();
    started(device::observe<T>(all, n, static_cast<int>(used), static_cast<int>(spare), all + (spare + 1) * n, grad.data(), grad_new.data(), sums.data(), at(stream)));
}

template <class T>
void combine(Matrix<const T> memory, const std::vector<ptrdiff_t>& rows, const std::vector<double>& weights, double factor, Vector<const T> grad, Vector<T> out, Sums sums, size_t stream) {
    const ptrdiff_t n = memory.shape(1);
    need(static_cast<ptrdiff_t>(grad.shape(0)) == n && static_cast<ptrdiff_t>(out.shape(0)) == n && n >= 1, "vectors must have as many entries as the memory has columns");
    need(rows.size() == weights.size() && rows.size() <= device::MOST, "one weight a row, and not too many rows");
    need(static_cast<ptrdiff_t>(sums.shape(0)) >= device::room(n, 1), "not room enough for the sums");
    device::Chosen chosen{};
    for (size_t i = 0; i < rows.size(); ++i) {
        need(rows[i] >= 0 && rows[i] < static_cast<ptrdiff_t>(memory.shape(0)), "rows must be of the memory");
        chosen.row[i] = rows[i], chosen.weight[i] = weights[i];
    }
    chosen.count = static_cast<int>(rows.size());
    started(device::combine<T>(memory.data(), n, chosen, factor, grad.data(), out.data(), sums.data(), at(stream)));
}

template <class T>
void reach(Vector<const T> step, Vector<const T> moved, Vector<const T> origin, Vector<const T> correction, Vector<T> reached, Vector<T> trial, Sums sums, size_t stream) {
    const size_t n = step.shape(0);
    need(moved.shape(0) == n && origin.shape(0) == n && correction.shape(0) == n && reached.shape(0) == n && trial.shape(0) == n && n >= 1, "vectors must have the same length");
    need(static_cast<ptrdiff_t>(sums.shape(0)) >= device::room(n, 2), "not room enough for the sums");
    started(device::reach<T>(step.data(), moved.data(), origin.data(), correction.data(), reached.data(), trial.data(), n, sums.data(), at(stream)));
}

template <class T>
void blend(Vector<T> momentum, Vector<const T> fresh, Vector<const T> kept, Vector<const T> grad, double beta, Sums squares, size_t stream) {
    const size_t n = momentum.shape(0);
    need(fresh.shape(0) == n && kept.shape(0) == n && grad.shape(0) == n && n >= 1, "vectors must have the same length");
    need(static_cast<ptrdiff_t>(squares.shape(0)) == device::parts(n), "not one square for each block");
    started(device::blend<T>(momentum.data(), fresh.data(), kept.data(), grad.data(), beta, n, squares.data(), at(stream)));
}

template <class T>
void square(Vector<const T> vector, Sums squares, size_t stream) {
    const size_t n = vector.shape(0);
    need(n >= 1 && static_cast<ptrdiff_t>(squares.shape(0)) == device::parts(n), "not one square for each block");
    started(device::square<T>(vector.data(), n, squares.data(), at(stream)));
}

template <class T>
void advance(Vector<T> point, Vector<const T> direction, Vector<const T> stride, Sums squares, size_t stream) {
    const size_t n = point.shape(0);
    need(direction.shape(0) == n && n >= 1 && stride.shape(0) == 1, "point and direction must have the same length, stride is one number");
    started(device::advance<T>(point.data(), direction.data(), stride.data(), squares.data(), squares.shape(0), n, at(stream)));
}

template <class T>
void define(nb::module_& m) {
    m.def("blend_cuda_", &blend<T>, "momentum"_a.noconvert(), "fresh"_a.noconvert(), "kept"_a.noconvert(), "grad"_a.noconvert(), "beta"_a, "squares"_a.noconvert(), "stream"_a);
    m.def("square_cuda_", &square<T>, "vector"_a.noconvert(), "squares"_a.noconvert(), "stream"_a);
    m.def("advance_cuda_", &advance<T>, "point"_a.noconvert(), "direction"_a.noconvert(), "stride"_a.noconvert(), "squares"_a.noconvert(), "stream"_a);
    m.def("observe_cuda_", &observe<T>, "memory"_a.noconvert(), "used"_a, "spare"_a, "grad"_a.noconvert(), "grad_new"_a.noconvert(), "sums"_a.noconvert(), "stream"_a);
    m.def("combine_cuda_", &combine<T>, "memory"_a.noconvert(), "chosen"_a, "weights"_a, "factor"_a, "grad"_a.noconvert(), "out"_a.noconvert(), "sums"_a.noconvert(), "stream"_a);
    m.def("reach_cuda_", &reach<T>, "step"_a.noconvert(), "moved"_a.noconvert(), "origin"_a.noconvert(), "correction"_a.noconvert(), "reached"_a.noconvert(), "trial"_a.noconvert(), "sums"_a.noconvert(), "stream"_a);
}

}  // namespace

void define_cuda(nb::module_& m) {
    m.attr("DEVICE_ROWS") = device::MOST;
    m.def("device_room", &device::room, "n"_a, "width"_a);
    m.def("device_parts", &device::parts, "n"_a);
    define<float>(m);
    define<double>(m);
}
