// Registers full of numbers, for the instruction set of the file that includes this inside its namespace.

// a register's worth of float64: GCC takes wider vectors apart in memory, which is slower than no vectors at all
#if defined __AVX512F__
constexpr ptrdiff_t WIDTH = 8;
constexpr int TOGETHER = 5;  // rows whose sums stay in registers
#elif defined __AVX2__
constexpr ptrdiff_t WIDTH = 4;
constexpr int TOGETHER = 4;
#else
constexpr ptrdiff_t WIDTH = 2;
constexpr int TOGETHER = 4;
#endif

typedef double lanes __attribute__((vector_size(WIDTH * sizeof(double)), aligned(8), may_alias));
typedef float lanes32 __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__  // one instruction each, of which GCC 12 makes five
INLINE void load(lanes& to, const float* from) { to = lanes(_mm512_cvtps_pd(_mm256_loadu_ps(from))); }
INLINE void store(float* to, const lanes& from) { _mm256_storeu_ps(to, _mm512_cvtpd_ps(__m512d(from))); }
#else
INLINE void load(lanes& to, const float* from) { to = __builtin_convertvector(*reinterpret_cast<const lanes32*>(from), lanes); }
INLINE void store(float* to, const lanes& from) { *reinterpret_cast<lanes32*>(to) = __builtin_convertvector(from, lanes32); }
#endif
INLINE void load(lanes& to, const double* from) { to = *reinterpret_cast<const lanes*>(from); }
INLINE void store(double* to, const lanes& from) { *reinterpret_cast<lanes*>(to) = from; }

template <class T>
constexpr ptrdiff_t LINE = 64 / sizeof(T);  // numbers of a cache line

// Fetch what a row holds 4 kB further on into the second cache: with some ten rows and more in turn a processor no longer sees by
// itself that each is read from its beginning to its end. Beyond the row's block lies its next one, beyond its end whatever follows:
// no address can fail.
template <class T>
INLINE void ahead(const T* row) { __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<__UINTPTR_TYPE__>(row) + 4096), 0, 2); }

INLINE double across(const lanes& x) {
    double sum[WIDTH];
    for (int i = 0; i < WIDTH; ++i) sum[i] = x[i];
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
    return sum[0];
}

// sum(lo, hi) = sum(lo, mid) + sum(mid, hi) of rows of `stride` numbers; the result in row lo
void pairwise(double* rows, ptrdiff_t lo, ptrdiff_t hi, ptrdiff_t stride) {
    if (hi - lo < 2) return;
    const ptrdiff_t mid = lo + (hi - lo) / 2;
    pairwise(rows, lo, mid, stride);
    pairwise(rows, mid, hi, stride);
    for (ptrdiff_t i = 0; i < stride; ++i) rows[lo * stride + i] += rows[mid * stride + i];
}
