// scores on AVX2: 16 doubles are four registers; F16C widens fp16, a shift bf16. The conversions to double limit it, at
// about the rate of memory.
#include <type_traits>

#include "../isa.h"
#include "../thread_pool.h"
#include "scores.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

#include "../element.inc"

struct Lanes {
  __m256d a, b, c, d;
};

inline Lanes zeros() {
  const __m256d zero = _mm256_setzero_pd();
  return {zero, zero, zero, zero};
}
inline Lanes wide(__m256 low, __m256 high) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(low)), _mm256_cvtps_pd(_mm256_extractf128_ps(low, 1)),
          _mm256_cvtps_pd(_mm256_castps256_ps128(high)), _mm256_cvtps_pd(_mm256_extractf128_ps(high, 1))};
}
inline __m256 eight(const half* x) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
inline __m256 eight(const bfloat* x) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline __m256 eight(const float* x) { return _mm256_loadu_ps(x); }
template <class T>
Lanes load(const T* x) {
  return wide(eight(x), eight(x + 8));
}
inline Lanes load(const double* x) {
  return {_mm256_loadu_pd(x), _mm256_loadu_pd(x + 4), _mm256_loadu_pd(x + 8), _mm256_loadu_pd(x + 12)};
}
inline void store(double* x, const Lanes& s) {
  _mm256_storeu_pd(x, s.a);
  _mm256_storeu_pd(x + 4, s.b);
  _mm256_storeu_pd(x + 8, s.c);
  _mm256_storeu_pd(x + 12, s.d);
}
inline Lanes magnitude(const Lanes& s) {
  const __m256d sign = _mm256_set1_pd(-0.0);
  return {_mm256_andnot_pd(sign, s.a), _mm256_andnot_pd(sign, s.b), _mm256_andnot_pd(sign, s.c),
          _mm256_andnot_pd(sign, s.d)};
}
inline Lanes multiply(const Lanes& s, const Lanes& t) {
  return {_mm256_mul_pd(s.a, t.a), _mm256_mul_pd(s.b, t.b), _mm256_mul_pd(s.c, t.c), _mm256_mul_pd(s.d, t.d)};
}
inline Lanes add(const Lanes& s, const Lanes& t) {
  return {_mm256_add_pd(s.a, t.a), _mm256_add_pd(s.b, t.b), _mm256_add_pd(s.c, t.c), _mm256_add_pd(s.d, t.d)};
}

#include "loop.inc"

}  // namespace

void scores_avx2(const scores_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
