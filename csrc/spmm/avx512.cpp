// spmm on AVX-512: tiles of 64 fp32 or 32 fp64 columns of two rows at a time (8 sums), narrower ones of four rows.
#include "../isa.h"
#include "../thread_pool.h"
#include "spmm.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "one.inc"

template <class T>
struct Wide;

template <>
struct Wide<float> {
  using V = __m512;
  using M = __mmask16;
  static constexpr std::size_t lanes = 16;
  static M part(std::size_t n) { return static_cast<M>((1u << n) - 1); }
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V load(const float* p, M m) { return _mm512_maskz_loadu_ps(m, p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static void store(float* p, V v, M m) { _mm512_mask_storeu_ps(p, m, v); }
  static V set1(float v) { return _mm512_set1_ps(v); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
};

template <>
struct Wide<double> {
  using V = __m512d;
  using M = __mmask8;
  static constexpr std::size_t lanes = 8;
  static M part(std::size_t n) { return static_cast<M>((1u << n) - 1); }
  static V load(const double* p) { return _mm512_loadu_pd(p); }
  static V load(const double* p, M m) { return _mm512_maskz_loadu_pd(m, p); }
  static void store(double* p, V v) { _mm512_storeu_pd(p, v); }
  static void store(double* p, V v, M m) { _mm512_mask_storeu_pd(p, m, v); }
  static V set1(double v) { return _mm512_set1_pd(v); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
};

constexpr double entry_us = 7e-4;

#include "loop.inc"

}  // namespace

void spmm_avx512(const spmm_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
