// The kernels without Python: those of the CPU with several threads, those of a GPU emulated, both against plain loops.
//
// tests/sanitize.sh builds this page under ThreadSanitizer and under AddressSanitizer; it ends with status 1 if a number is wrong.
#include "emulated.hpp"

#define APTS_LEVEL base
#include "kernels.cpp"
#include "kernels.cu"

#include <cmath>
#include <cstdio>
#include <random>
#include <utility>

namespace {

int wrong = 0;

void same(const char* what, double found, double expected, double scale, double tolerance) {
    if (std::abs(found - expected) <= tolerance * scale) return;
    ++wrong;
    std::printf("WRONG: %s: %.17g in place of %.17g\n", what, found, expected);
}

template <class T>
struct Given {
    ptrdiff_t n;
    int rows;
    std::vector<T> memory, grad, grad_new;

    Given(ptrdiff_t n, int rows) : n(n), rows(rows), memory(rows * n), grad(n), grad_new(n) {
        std::mt19937_64 random(static_cast<unsigned long>(n + rows));
        std::normal_distribution<double> normal;
        for (std::vector<T>* values : {&memory, &grad, &grad_new})
            for (T& value : *values) value = static_cast<T>(normal(random));
    }
};

// The lengths: below a lane, around the columns of one thread block, around a block of the CPU, and an odd one. On a GPU 22 rows are one
// pass if s and y are among them, 24 are two and 45 are three.
constexpr ptrdiff_t LENGTHS[] = {1, 7, 1023, 1024, 1025, 8193, 20011};
constexpr int ROWS[] = {2, 5, 12, 22, 24, 45};

template <class T>
void observes(ptrdiff_t n, int rows, int used, int spare) {
    const int width = 3 * used + 10;
    Given<T> host(n, rows), gpu(n, rows);
    std::vector<double> sums(((n + BLOCK - 1) / BLOCK) * width), room(device::room(n, width));
    T* const s = host.memory.data() + spare * n;
    observe_base(Observe<T>{host.memory.data(), n, used, s, host.grad_new.data(), host.grad.data(), s + n, n, 4}, sums.data());
    T* const there = gpu.memory.data();
    device::observe<T>(there, n, used, spare, there + (spare + 1) * n, gpu.grad.data(), gpu.grad_new.data(), room.data(), nullptr);
    Given<T> plain(n, rows);
    T* const y = plain.memory.data() + (spare + 1) * n;
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = plain.grad_new[i] - plain.grad[i];
    for (ptrdiff_t i = 0; i < rows * n; ++i)
        same("a row", host.memory[i], plain.memory[i], 1, 0), same("a row on the device", there[i], plain.memory[i], 1, 0);
    const T* const four[4] = {y - n, y, plain.grad_new.data(), plain.grad.data()};
    const auto dot = [n](const T* a, const T* b) {
        double sum = 0, size = 0;
        for (ptrdiff_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i], size += std::abs(static_cast<double>(a[i]) * b[i]);
        return std::pair<double, double>(sum, size);
    };
    const auto check = [&](int k, std::pair<double, double> expected) {
        same("a product", sums[k], expected.first, expected.second, 1e-13);
        same("a product on the device", room[k], expected.first, expected.second, 1e-13);
    };
    for (int r = 0; r < used; ++r)
        for (int v = 0; v < 3; ++v) check(3 * r + v, dot(plain.memory.data() + r * n, four[v]));
    int k = 3 * used;
    for (int a = 0; a < 4; ++a)
        for (int b = a; b < 4; ++b, ++k) check(k, dot(four[a], four[b]));
}

template <class T>
void combines(ptrdiff_t n, int rows) {
    const Given<T> given(n, rows);
    const double eps = sizeof(T) == 4 ? 6e-8 : 1.2e-16;
    device::Chosen chosen{};
    std::vector<const T*> at;
    std::vector<double> weights;
    for (int r = rows - 1; r >= 0; r -= 2) {
        weights.push_back(0.5 - r), at.push_back(given.memory.data() + r * n);
        chosen.row[chosen.count] = r, chosen.weight[chosen.count++] = weights.back();
    }
    std::vector<T> host(n), gpu(n);
    std::vector<double> sums((n + BLOCK - 1) / BLOCK), room(device::room(n, 1));
    combine_base(Combine<T>{at.data(), weights.data(), chosen.count, given.grad.data(), -0.75, host.data(), n, 4}, sums.data());
    device::combine<T>(given.memory.data(), n, chosen, -0.75, given.grad.data(), gpu.data(), room.data(), nullptr);
    double squares[2] = {0, 0};
    for (ptrdiff_t i = 0; i < n; ++i) {
        double sum = -0.75 * given.grad[i], size = std::abs(sum);
        for (size_t r = 0; r < at.size(); ++r) sum += weights[r] * at[r][i], size += std::abs(weights[r] * at[r][i]);
        same("an entry", host[i], sum, size, 4 * eps), same("an entry on the device", gpu[i], sum, size, 4 * eps);
        squares[0] += static_cast<double>(host[i]) * host[i], squares[1] += static_cast<double>(gpu[i]) * gpu[i];
    }
    same("a square", sums[0], squares[0], squares[0], 1e-13), same("a square on the device", room[0], squares[1], squares[1], 1e-13);
}

template <class T>
void reaches(ptrdiff_t n) {
    const Given<T> given(n, 2);
    const T *const step = given.memory.data(), *const moved = step + n, *const origin = given.grad.data(), *const r = given.grad_new.data();
    std::vector<T> reached(n), trial(n), there(n), tried(n);
    std::vector<double> sums(2 * ((n + BLOCK - 1) / BLOCK)), room(device::room(n, 2));
    reach_base(Reach<T>{step, moved, origin, r, reached.data(), trial.data(), n, 4}, sums.data());
    device::reach<T>(step, moved, origin, r, there.data(), tried.data(), n, room.data(), nullptr);
    double square = 0, sum = 0, size = 0;
    for (ptrdiff_t i = 0; i < n; ++i) {
        const T x = moved[i] + step[i], point = origin[i] + x;
        const double term = static_cast<double>(r[i]) * x;
        square += static_cast<double>(x) * x, sum += term, size += std::abs(term);
        same("a sum of steps", reached[i], x, 1, 0), same("a sum of steps on the device", there[i], x, 1, 0);
        same("a trial point", trial[i], point, 1, 0), same("a trial point on the device", tried[i], point, 1, 0);
    }
    same("a square of steps", sums[0], square, square, 1e-13), same("a square of steps on the device", room[0], square, square, 1e-13);
    same("a correction", sums[1], sum, size, 1e-13), same("a correction on the device", room[1], sum, size, 1e-13);
}

template <class T>
void blends(ptrdiff_t n) {
    const Given<T> given(n, 2);
    const double eps = sizeof(T) == 4 ? 6e-8 : 1.2e-16;
    const T *const fresh = given.memory.data(), *const kept = fresh + n;
    std::vector<T> momentum = given.grad;
    std::vector<double> sums((n + BLOCK - 1) / BLOCK);
    blend_base(Blend<T>{momentum.data(), fresh, kept, given.grad_new.data(), 0.9, n, 4}, sums.data());
    double square = 0;
    for (ptrdiff_t i = 0; i < n; ++i) {
        const double change = static_cast<double>(fresh[i]) - kept[i] + given.grad_new[i];
        same("a momentum", momentum[i], 0.9 * given.grad[i] + 0.1 * change, 8, 4 * eps);
        square += static_cast<double>(momentum[i]) * momentum[i];
    }
    same("a square of momentum", sums[0], square, square, 1e-13);

    std::vector<T> moved = given.grad, point = given.grad_new;
    std::vector<double> squares(device::parts(n)), again(device::parts(n));
    device::blend<T>(moved.data(), fresh, kept, given.grad_new.data(), 0.9, n, squares.data(), nullptr);
    device::square<T>(moved.data(), n, again.data(), nullptr);
    const T stride = T(0.25);
    device::advance<T>(point.data(), moved.data(), &stride, squares.data(), device::parts(n), n, nullptr);
    double found = 0, second = 0;
    square = 0;
    for (const double part : squares) found += part;
    for (const double part : again) second += part;
    for (ptrdiff_t i = 0; i < n; ++i) square += static_cast<double>(moved[i]) * moved[i];
    same("a square on the device", found, square, square, 1e-13), same("a square of it alone", second, square, square, 1e-13);
    for (ptrdiff_t i = 0; i < n; ++i) {
        same("a momentum on the device", moved[i], momentum[i], 8, 4 * eps);
        same("a point on the device", point[i], given.grad_new[i] - 0.25 * moved[i] / std::sqrt(square), 8, 4 * eps);
    }
}

template <class T>
void all() {
    for (const ptrdiff_t n : LENGTHS) {
        for (const int rows : ROWS) {
            observes<T>(n, rows, rows - 2, rows - 2), observes<T>(n, rows, rows, rows / 4 * 2);
            observes<T>(n, rows, rows / 2, rows / 2 - 1), combines<T>(n, rows);
        }
        reaches<T>(n), blends<T>(n);
    }
}

}  // namespace

int main() {
    all<float>(), all<double>();
    std::printf(wrong ? "%d numbers are wrong\n" : "all numbers are right\n", wrong);
    return wrong != 0;
}
