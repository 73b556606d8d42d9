// The small float64 matrices of an L-SR1 iteration: what solver/compact.py and solver/obs.py define, decision by decision.
//
// One thread, nothing raised but std::bad_alloc; nan and infinity may come in anywhere. Sums run in order, so the results are those of the
// Python functions up to rounding. `left < right ? right : left` of std::max(left, right) is also what Python's max does with a nan.
#pragma once

#include <cstddef>
#include <vector>

namespace small {

using Numbers = std::vector<double>;

// entries of numpy, of any strides
struct Vector {
    const double* data;
    std::ptrdiff_t step;
    double operator[](std::ptrdiff_t i) const { return data[i * step]; }
};

struct Matrix {
    const double* data;
    std::ptrdiff_t down, right;
    double operator()(std::ptrdiff_t i, std::ptrdiff_t j) const { return data[i * down + j * right]; }
};

struct Gram {
    std::ptrdiff_t k;
    Matrix ss, sy, yy;  // (k, k)
};

struct Compact {
    std::vector<std::ptrdiff_t> used;
    Numbers p, delta;  // (r, k), a column of compact.Compact.p in each row; (r,)
};

struct Spectrum {
    Numbers eigenvalues, basis;  // (r,); (r, k), a column of compact.Spectrum.basis in each row
    double noise;
};

struct Products {
    Vector sg, yg;  // (k,)
    double gg;
};

struct Solution {
    Numbers coefficients;
    double sigma, predicted, step_norm, curvature;
    bool hits_boundary, hard_case, finite;
    int iterations;
};

struct Step {
    Solution solution;
    double grad;
    Numbers s, y;  // (k,)
};

Compact sr1(const Gram& gram, double gamma, double noise);

// p: (k, r), delta: (r,) for the r pairs `used`, each in 0..k-1
Spectrum spectrum(const Gram& gram, double gamma, const std::vector<std::ptrdiff_t>& used, const Matrix& p, const Vector& delta,
    double noise, double cut, std::ptrdiff_t n_params);

// basis: (k, r), eigenvalues: (r,)
Step minimise(const Gram& gram, double gamma, std::ptrdiff_t r, const Vector& eigenvalues, const Matrix& basis, double noise,
    const Products& products, std::ptrdiff_t n_params, double radius);

Solution solve(const Numbers& eigenvalues, const Numbers& grad, double radius);

// Eigenvalues w, ascending, and eigenvectors, the rows of v, of a symmetric (n, n) matrix of finite entries, of which the lower triangle is
// read; false if they did not converge.
bool eigen(Numbers a, std::ptrdiff_t n, Numbers& w, Numbers& v);

}  // namespace small
