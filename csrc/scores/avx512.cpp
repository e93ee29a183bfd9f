// scores on AVX-512: 16 doubles are two registers. Memory limits it: rows of fp32 from DRAM take hardly longer than
// reading them.
#include <type_traits>

#include "../isa.h"
#include "../thread_pool.h"
#include "scores.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "../element.inc"

struct Lanes {
  __m512d a, b;
};

inline Lanes zeros() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
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
  return {_mm512_cvtps_pd(eight(x)), _mm512_cvtps_pd(eight(x + 8))};
}
inline Lanes load(const double* x) { return {_mm512_loadu_pd(x), _mm512_loadu_pd(x + 8)}; }
inline void store(double* x, const Lanes& s) {
  _mm512_storeu_pd(x, s.a);
  _mm512_storeu_pd(x + 8, s.b);
}
inline Lanes magnitude(const Lanes& s) { return {_mm512_abs_pd(s.a), _mm512_abs_pd(s.b)}; }
inline Lanes multiply(const Lanes& s, const Lanes& t) { return {_mm512_mul_pd(s.a, t.a), _mm512_mul_pd(s.b, t.b)}; }
inline Lanes add(const Lanes& s, const Lanes& t) { return {_mm512_add_pd(s.a, t.a), _mm512_add_pd(s.b, t.b)}; }

#include "loop.inc"

}  // namespace

void scores_avx512(const scores_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
