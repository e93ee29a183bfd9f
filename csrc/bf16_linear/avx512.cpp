// bf16_linear on AVX-512: vpexpandd brings 16 weights to their places. Not vdpbf16ps (AVX512-BF16): it belongs to no level
// without AMX, and two products in an instruction gain less than half where the expansion is most of the time.
// Limit: the fused multiply-adds, 16 sums (8 rows x 32 outputs); at few rows the expansion, 2 x 4 operations a line.
//
// 3072 x 768, one thread of a busy Zen 4, us, beside dense fp32 and dense bf16 (vdpbf16ps) of torch, and sparse_linear:
//   50 % zeros, 1 / 4 / 8 / 32 rows: 188 / 356 / 606 / 1780; 813 / 1140 / 1303 / 2662; 636 / 758 / 824 / 1327; 952 / 1073 / 1053 / 1565
//   70 %: 176 / 317 / 530 / 1710; dense the same; sparse_linear 360 / 500 / 505 / 945. At 90 % sparse_linear is faster throughout.
#include "../isa.h"
#include "../thread_pool.h"
#include "bf16_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

struct Line {
  using V = __m512;
  static constexpr std::size_t lanes = 16;
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static V set1(float v) { return _mm512_set1_ps(v); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V expand(std::uint32_t bits, const std::uint16_t* values) {
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
    const __m512i moved = _mm512_maskz_expand_epi32(static_cast<__mmask16>(bits), _mm512_slli_epi32(words, 16));
    return _mm512_castsi512_ps(moved);
  }
};

constexpr int tile_rows = 8, direct_rows = 4;
constexpr double mac_per_us = 4e4;

#include "../activation.inc"
//
#include "rounding.inc"
//
#include "loop.inc"

}  // namespace

void bf16_linear_avx512(const bf16_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
