#include "small.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace small {

namespace {

using std::ptrdiff_t;

constexpr double EPS = std::numeric_limits<double>::epsilon(), NONE = 1e-290;  // a square below which a vector of size 1 counts as zero
constexpr double NOT = std::numeric_limits<double>::quiet_NaN();
constexpr double ADMISSION = 1e-8, TOLERANCE = 1e-13;  // as compact.py and subproblem.py have them
constexpr int ITERATIONS = 60;

double dot(const double* a, const double* b, ptrdiff_t n) {
    double sum = 0.0;
    for (ptrdiff_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

double norm(const Numbers& a) { return std::sqrt(dot(a.data(), a.data(), a.size())); }

void add(double factor, const double* a, ptrdiff_t n, double* sum) {
    for (ptrdiff_t i = 0; i < n; ++i) sum[i] += factor * a[i];
}

bool finite(const Numbers& a) {
    return std::all_of(a.begin(), a.end(), [](double x) { return std::isfinite(x); });
}

// max |a_i|, 0 of nothing, nan if there is one
double largest(const Numbers& a) {
    double found = 0.0;
    for (const double x : a) found = std::isnan(x) || std::fabs(x) > found ? std::fabs(x) : found;
    return std::any_of(a.begin(), a.end(), [](double x) { return std::isnan(x); }) ? NOT : found;
}

double psi_gram(const Gram& g, double gamma, ptrdiff_t i, ptrdiff_t j) {
    return g.yy(i, j) - gamma * (g.sy(i, j) + g.sy(j, i)) + gamma * gamma * g.ss(i, j);
}

// psi_i's_j
double cross(const Gram& g, double gamma, ptrdiff_t i, ptrdiff_t j) { return g.sy(j, i) - gamma * g.ss(i, j); }

double magnitude(const Gram& g, double gamma, ptrdiff_t i) {
    const double size = std::sqrt(g.yy(i, i)) + std::fabs(gamma) * std::sqrt(g.ss(i, i));
    return size == 0 ? 1.0 : size;
}

// (x, y) := (c x + s y, c y - s x)
void rotate(double c, double s, double* __restrict__ x, double* __restrict__ y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        const double a = x[i], b = y[i];
        x[i] = c * a + s * b;
        y[i] = c * b - s * a;
    }
}

// A = V'TV by reflections: d and e are the diagonals of T; a becomes scratch, v, the identity, V
void tridiagonal(Numbers& a, ptrdiff_t n, Numbers& d, Numbers& e, Numbers& v) {
    Numbers u(n), q(n);
    for (ptrdiff_t j = 0; j + 1 < n; ++j) {
        double *const below = &a[j * n], square = dot(below + j + 2, below + j + 2, n - j - 2);  // a row, of the symmetric matrix
        d[j] = below[j], e[j] = below[j + 1];
        if (square < NONE) continue;
        const double length = -std::copysign(std::sqrt(square + e[j] * e[j]), e[j]);
        std::copy(below + j + 1, below + n, u.begin() + j + 1);
        u[j + 1] -= length;
        const double beta = 2.0 / (square + u[j + 1] * u[j + 1]);
        e[j] = length;
        std::fill(q.begin(), q.end(), 0.0);
        for (ptrdiff_t i = j + 1; i < n; ++i) add(beta * u[i], &a[i * n + j + 1], n - j - 1, &q[j + 1]);
        add(-0.5 * beta * dot(&u[j + 1], &q[j + 1], n - j - 1), &u[j + 1], n - j - 1, &q[j + 1]);
        for (ptrdiff_t i = j + 1; i < n; ++i) {
            add(-u[i], &q[j + 1], n - j - 1, &a[i * n + j + 1]);
            add(-q[i], &u[j + 1], n - j - 1, &a[i * n + j + 1]);
        }
        std::fill(q.begin(), q.end(), 0.0);
        for (ptrdiff_t i = j + 1; i < n; ++i) add(beta * u[i], &v[i * n], n, q.data());
        for (ptrdiff_t i = j + 1; i < n; ++i) add(-u[i], q.data(), n, &v[i * n]);
    }
    if (n > 0) d[n - 1] = a[n * n - 1];
}

// one implicit QR step with Wilkinson's shift on rows low..high of T
void qr_step(ptrdiff_t low, ptrdiff_t high, ptrdiff_t n, Numbers& d, Numbers& e, Numbers& v) {
    const double half = 0.5 * (d[high - 1] - d[high]), last = e[high - 1];
    const double shift = d[high] - last * (last / (half + std::copysign(std::sqrt(half * half + last * last), half)));
    double x = d[low] - shift, z = e[low];
    for (ptrdiff_t i = low; i < high; ++i) {
        const double square = x * x + z * z, r = std::sqrt(square);
        const double c = square < NONE ? 1.0 : x / r, s = square < NONE ? 0.0 : z / r;
        if (i > low) e[i - 1] = r;
        const double a = d[i], b = e[i], q = d[i + 1];
        d[i] = c * c * a + 2.0 * c * s * b + s * s * q;
        d[i + 1] = s * s * a - 2.0 * c * s * b + c * c * q;
        e[i] = x = (c - s) * (c + s) * b + c * s * (q - a);
        if (i + 1 < high) z = s * e[i + 1], e[i + 1] *= c;
        rotate(c, s, &v[i * n], &v[(i + 1) * n], n);
    }
}

}  // namespace

bool eigen(Numbers a, ptrdiff_t n, Numbers& w, Numbers& v) {
    for (ptrdiff_t i = 0; i < n; ++i)
        for (ptrdiff_t j = 0; j < i; ++j) a[j * n + i] = a[i * n + j];
    const double size = largest(a);
    int unit = 0;  // a power of 2 that takes the largest entry to 0.5..1, so that no square overflows and those that vanish do not matter
    if (size > 0) std::frexp(size, &unit);
    for (double& x : a) x = std::ldexp(x, -unit);
    Numbers d(n), e(n), z(n * n);
    for (ptrdiff_t i = 0; i < n; ++i) z[i * (n + 1)] = 1.0;
    tridiagonal(a, n, d, e, z);
    ptrdiff_t left = 60 * n;  // steps; about 2 an eigenvalue are taken
    for (ptrdiff_t high = n - 1; high > 0;) {
        ptrdiff_t low = high;
        while (low > 0 && std::fabs(e[low - 1]) > EPS * (std::fabs(d[low - 1]) + std::fabs(d[low]) + EPS)) --low;
        if (low == high) {
            --high;
        } else if (left-- > 0) {
            qr_step(low, high, n, d, e, z);
        } else {
            return false;
        }
    }
    std::vector<ptrdiff_t> order(n);
    for (ptrdiff_t i = 0; i < n; ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](ptrdiff_t i, ptrdiff_t j) { return d[i] < d[j]; });
    w.resize(n), v.resize(n * n);
    for (ptrdiff_t i = 0; i < n; ++i) {
        w[i] = std::ldexp(d[order[i]], unit);
        std::copy_n(&z[order[i] * n], n, &v[i * n]);
    }
    return true;
}

Compact sr1(const Gram& gram, double gamma, double noise) {
    const ptrdiff_t k = gram.k;
    Compact found;
    Numbers inner(k * k), size(k), with(k), column(k), image(k);
    for (ptrdiff_t i = 0; i < k; ++i) {
        size[i] = magnitude(gram, gamma, i);
        for (ptrdiff_t j = 0; j < k; ++j) inner[i * k + j] = psi_gram(gram, gamma, i, j);
    }
    for (ptrdiff_t j = 0; j < k; ++j) {
        for (ptrdiff_t i = 0; i < k; ++i) with[i] = cross(gram, gamma, i, j), column[i] = image[i] = 0.0;
        for (size_t r = 0; r < found.used.size(); ++r) {
            const double* const p = &found.p[r * k];
            add(-dot(p, with.data(), k) / found.delta[r], p, k, column.data());
        }
        column[j] += 1.0;
        const double pivot = dot(column.data(), with.data(), k);
        if (!std::isfinite(pivot) || pivot == 0) continue;
        double reach = 0.0;
        for (ptrdiff_t i = 0; i < k; ++i) add(column[i], &inner[i * k], k, image.data()), reach += std::fabs(column[i]) * size[i];
        const double u_norm = std::sqrt(std::max(dot(image.data(), column.data(), k), 0.0));
        if (!(std::fabs(pivot) >= std::sqrt(gram.ss(j, j)) * std::max(ADMISSION * u_norm, noise * reach))) continue;
        found.used.push_back(j);
        found.delta.push_back(pivot);
        found.p.insert(found.p.end(), column.begin(), column.end());
    }
    return found;
}

Spectrum spectrum(const Gram& gram, double gamma, const std::vector<ptrdiff_t>& used, const Matrix& p, const Vector& delta,
    double noise, double cut, ptrdiff_t n_params) {
    const ptrdiff_t k = gram.k, r = used.size();
    const Spectrum empty{{}, {}, noise};
    Numbers size(r), scaled(r * r), middle(r * r), column(r), w, v, shift, u;
    for (ptrdiff_t i = 0; i < r; ++i) size[i] = magnitude(gram, gamma, used[i]);
    for (ptrdiff_t a = 0; a < r; ++a) {
        for (ptrdiff_t i = 0; i < r; ++i) column[i] = p(used[i], a);
        for (ptrdiff_t i = 0; i < r; ++i) add(column[i] / delta[a], column.data(), r, &middle[i * r]);
    }
    for (ptrdiff_t i = 0; i < r; ++i) {
        for (ptrdiff_t j = 0; j < r; ++j) {
            scaled[i * r + j] = psi_gram(gram, gamma, used[i], used[j]) / (size[i] * size[j]);
            middle[i * r + j] *= size[i] * size[j];
        }
    }
    if (r == 0 || !finite(scaled) || !finite(middle) || !eigen(scaled, r, w, v)) return empty;
    const double least = cut * std::max(w[r - 1], 0.0);
    ptrdiff_t first = 0;  // eigenvectors from it on are kept
    while (first < r && !(w[first] > least)) ++first;
    if (n_params > 0 && n_params < r - first) first = r - n_params;
    const ptrdiff_t kept = r - first;
    if (kept == 0) return empty;
    Numbers part(kept * r), inside(kept * kept);  // part: Q'Psi M, scaled
    for (ptrdiff_t i = 0; i < kept; ++i) {
        const double root = std::sqrt(w[first + i]);
        for (ptrdiff_t a = 0; a < r; ++a) add(root * v[(first + i) * r + a], &middle[a * r], r, &part[i * r]);
        for (ptrdiff_t j = 0; j <= i; ++j) inside[i * kept + j] = std::sqrt(w[first + j]) * dot(&part[i * r], &v[(first + j) * r], r);
    }
    if (!finite(inside) || !eigen(inside, kept, shift, u) || !finite(shift)) return empty;
    Spectrum found{shift, Numbers(kept * k), noise * (1.0 + kept * w[r - 1] / w[first])};
    for (ptrdiff_t i = 0; i < kept; ++i) {
        found.eigenvalues[i] += gamma;
        std::fill(column.begin(), column.end(), 0.0);
        for (ptrdiff_t j = 0; j < kept; ++j) add(u[i * kept + j] / std::sqrt(w[first + j]), &v[(first + j) * r], r, column.data());
        for (ptrdiff_t a = 0; a < r; ++a) found.basis[i * k + used[a]] = column[a] / size[a];
    }
    return found;
}

namespace {

Solution zero(ptrdiff_t size, bool is_finite) { return {Numbers(size), 0.0, 0.0, 0.0, 0.0, false, false, is_finite, 0}; }

// -g_i / (gaps_i + x), 0 where g_i is 0
Numbers at(const Numbers& gaps, const Numbers& g, double x) {
    Numbers t(g.size());
    for (size_t i = 0; i < g.size(); ++i) t[i] = g[i] != 0 ? -g[i] / (gaps[i] + x) : 0.0;
    return t;
}

// subproblem._root
double root_of(const Numbers& gaps, const Numbers& g, double low, int& iterations) {
    double square = 0.0;
    for (size_t i = 0; i < g.size(); ++i) {
        if (g[i] != 0) low = std::max(low, std::fabs(g[i]) - gaps[i]), square += g[i] * g[i];
    }
    double high = std::max(low, std::sqrt(square)), x = low;
    for (iterations = 0; iterations < ITERATIONS; ++iterations) {
        const Numbers t = at(gaps, g, x);
        const double phi = norm(t);
        if (std::fabs(phi - 1.0) <= TOLERANCE || (phi < 1.0 && x == low)) return x;
        (phi > 1.0 ? low : high) = x;
        double slope = 0.0;
        for (size_t i = 0; i < g.size(); ++i) slope += g[i] != 0 ? t[i] * t[i] / (gaps[i] + x) : 0.0;
        x += (phi - 1.0) * phi * phi / slope;
        if (!(low < x && x < high)) {
            x = 0.5 * (low + high);
            if (!(low < x && x < high)) return high;
        }
    }
    return high;
}

struct Ball {
    Numbers t;
    double sigma;
    bool hard;
    int iterations;
};

// subproblem._unit_ball
Ball unit_ball(const Numbers& lam, const Numbers& g) {
    const ptrdiff_t left = std::min_element(lam.begin(), lam.end()) - lam.begin();
    const double lowest = lam[left];
    if (lowest >= 0) {
        Numbers t = at(lam, g, 0.0);
        if (norm(t) <= 1.0) return {std::move(t), 0.0, false, 0};
    }
    Numbers gaps = lam;
    for (double& x : gaps) x -= lowest;
    int iterations = 0;
    const double x = root_of(gaps, g, std::max(lowest, 0.0), iterations);
    Numbers t = at(gaps, g, x);
    const double length = norm(t);
    if (length > 1.0) {
        for (double& entry : t) entry /= length;
    } else if (lowest < 0 && length < 1.0 - 1e-9) {
        double others = 0.0;
        for (size_t i = 0; i < t.size(); ++i) others += static_cast<ptrdiff_t>(i) != left ? t[i] * t[i] : 0.0;
        t[left] = std::copysign(std::sqrt(std::max(1.0 - others, 0.0)), t[left] != 0 ? t[left] : -g[left]);
        return {std::move(t), x - lowest, true, iterations};
    }
    return {std::move(t), std::max(x - lowest, 0.0), false, iterations};
}

// obs._leaving: a into a, b = of e_best; false if no row of S leaves the span
bool leaving(const Gram& gram, double gamma, ptrdiff_t r, const Matrix& basis, double noise, Numbers& a, ptrdiff_t& best, double& b) {
    const ptrdiff_t k = gram.k;
    if (k == 0) return false;
    Numbers inside(r * k), rest(k);  // Q'S'; the squares of what of a row of S is outside
    double most = 0.0;
    best = 0;
    for (ptrdiff_t j = 0; j < k; ++j) {
        double sum = 0.0;
        for (ptrdiff_t i = 0; i < r; ++i) {
            double& entry = inside[i * k + j];
            for (ptrdiff_t c = 0; c < k; ++c) entry += basis(c, i) * cross(gram, gamma, c, j);
            sum += entry * entry;
        }
        rest[j] = gram.ss(j, j) - sum;
        const double share = gram.ss(j, j) > 0 ? rest[j] / gram.ss(j, j) : 0.0;
        if (j == 0 || share > most || (std::isnan(share) && !std::isnan(most))) most = share, best = j;
    }
    if (!(rest[best] > noise * gram.ss(best, best))) return false;
    b = 1.0 / std::sqrt(rest[best]);
    a.assign(k, 0.0);
    for (ptrdiff_t i = 0; i < r; ++i) {
        double weight = 0.0;
        for (ptrdiff_t j = 0; j < k; ++j) weight += inside[i * k + j] * (j == best ? b : 0.0);
        for (ptrdiff_t c = 0; c < k; ++c) a[c] -= basis(c, i) * weight;
    }
    return true;
}

}  // namespace

Solution solve(const Numbers& eigenvalues, const Numbers& grad, double radius) {
    const ptrdiff_t q = grad.size();
    const double steep = largest(grad), curved = radius * largest(eigenvalues);
    const double scale = std::isnan(steep) || std::isnan(curved) ? NOT : std::max(steep, curved);
    if (!std::isfinite(4 * scale) || !std::isfinite(4 * radius) || !std::isfinite(4 * scale * radius)) return zero(q, false);
    if (!(radius >= std::numeric_limits<double>::min())) return zero(q, false);
    if (scale == 0) return zero(q, true);
    Numbers lam(q), g(q);
    for (ptrdiff_t i = 0; i < q; ++i) lam[i] = eigenvalues[i] * radius / scale, g[i] = grad[i] / scale;
    if (!finite(lam) || !finite(g)) return zero(q, false);
    Ball ball = unit_ball(lam, g);
    const double length = norm(ball.t), sigma = ball.sigma;
    double above = 0.0, curvature = 0.0;
    for (ptrdiff_t i = 0; i < q; ++i) {
        const double square = ball.t[i] * ball.t[i];
        above += std::max(lam[i] + sigma, 0.0) * square;
        curvature += lam[i] * square;
    }
    const double predicted = 0.5 * above + 0.5 * sigma * length * length;
    for (double& entry : ball.t) entry *= radius;
    return {std::move(ball.t), sigma * scale / radius, predicted * scale * radius, radius * length, curvature * scale * radius,
        sigma > 0 || ball.hard || length >= 1.0 - 1e-9, ball.hard, true, ball.iterations};
}

Step minimise(const Gram& gram, double gamma, ptrdiff_t r, const Vector& eigenvalues, const Matrix& basis, double noise,
    const Products& products, ptrdiff_t n_params, double radius) {
    const ptrdiff_t k = gram.k;
    Numbers inside(r), lam(r);  // Q'g
    double outside = products.gg, lowest = r > 0 ? eigenvalues[0] : 0.0;  // ||g_perp||^2
    for (ptrdiff_t i = 0; i < r; ++i) {
        for (ptrdiff_t c = 0; c < k; ++c) inside[i] += basis(c, i) * (products.yg[c] - gamma * products.sg[c]);
        lam[i] = eigenvalues[i];
        lowest = std::min(lowest, lam[i]);
    }
    outside -= dot(inside.data(), inside.data(), r);
    if (!std::isfinite(outside)) return {zero(1, false), 0.0, Numbers(k), Numbers(k)};
    if (outside <= noise * products.gg || r >= n_params) outside = 0.0;
    Numbers leave, grad = inside;
    ptrdiff_t best = 0;
    double b = 0.0;
    const bool extra = outside == 0 && r < n_params && gamma < lowest && gamma < 0 && leaving(gram, gamma, r, basis, noise, leave, best, b);
    if (outside > 0 || extra) lam.push_back(gamma), grad.push_back(std::sqrt(outside));
    Step step{solve(lam, grad, radius), 0.0, Numbers(k), Numbers(k)};
    const Numbers& found = step.solution.coefficients;
    const double last = outside > 0 || extra ? found[r] : 0.0;
    if (outside > 0) step.grad = last / std::sqrt(outside);
    for (ptrdiff_t c = 0; c < k; ++c) {
        double psi = extra ? last * leave[c] : 0.0;
        for (ptrdiff_t i = 0; i < r; ++i) psi += basis(c, i) * (found[i] - step.grad * inside[i]);
        step.s[c] = (extra ? last * (c == best ? b : 0.0) : 0.0) - gamma * psi;
        step.y[c] = psi;
    }
    return step;
}

}  // namespace small
