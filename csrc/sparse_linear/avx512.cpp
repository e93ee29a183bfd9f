// sparse_linear on AVX-512: as on AVX2 with lines of 16 rows; 64 rows of two outputs of equal count at a time (8 sums).
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "x86.inc"

struct Wide {
  using V = __m512;
  static constexpr std::size_t lanes = 16;
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static V set1(float v) { return _mm512_set1_ps(v); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
};

constexpr int accumulators = 16;
constexpr double entry_us = 7e-4;

#include "../activation.inc"
//
#include "blocks.inc"
//
#include "loop.inc"

}  // namespace

void sparse_linear_avx512(const sparse_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
