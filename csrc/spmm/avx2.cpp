// spmm on AVX2: tiles of 32 fp32 or 16 fp64 columns of two rows at a time (8 sums), narrower ones of four rows.
#include "../isa.h"
#include "../thread_pool.h"
#include "spmm.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

#include "one.inc"

// Read from lanes - n on: the mask of the first n lanes.
const std::int32_t ones32[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
const std::int64_t ones64[8] = {-1, -1, -1, -1};

template <class T>
struct Wide;

template <>
struct Wide<float> {
  using V = __m256;
  using M = __m256i;
  static constexpr std::size_t lanes = 8;
  static M part(std::size_t n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones32 + lanes - n)); }
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static V load(const float* p, M m) { return _mm256_maskload_ps(p, m); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static void store(float* p, V v, M m) { _mm256_maskstore_ps(p, m, v); }
  static V set1(float v) { return _mm256_set1_ps(v); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
};

template <>
struct Wide<double> {
  using V = __m256d;
  using M = __m256i;
  static constexpr std::size_t lanes = 4;
  static M part(std::size_t n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones64 + lanes - n)); }
  static V load(const double* p) { return _mm256_loadu_pd(p); }
  static V load(const double* p, M m) { return _mm256_maskload_pd(p, m); }
  static void store(double* p, V v) { _mm256_storeu_pd(p, v); }
  static void store(double* p, V v, M m) { _mm256_maskstore_pd(p, m, v); }
  static V set1(double v) { return _mm256_set1_pd(v); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
};

constexpr double entry_us = 7e-4;

#include "loop.inc"

}  // namespace

void spmm_avx2(const spmm_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
