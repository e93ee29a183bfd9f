// bf16_linear on AVX2: a permutation for each byte of the mask, from a table of 2 KB, brings 8 weights to their places.
// Limit: 12 sums (3 rows x 32 outputs) for 4 loads of weights and 3 of activations.
#include "../isa.h"
#include "../thread_pool.h"
#include "bf16_linear.h"

#if PYCOMPRESS_X86
namespace pycompress {
namespace {

struct Places {  // of the values of 8 outputs, for each mask
  std::uint8_t of[256][8];
  constexpr Places() : of() {
    for (int mask = 0; mask < 256; ++mask) {
      int next = 0;
      for (int i = 0; i < 8; ++i) of[mask][i] = static_cast<std::uint8_t>(mask >> i & 1 ? next++ : 0);
    }
  }
};
constexpr Places places;

}  // namespace
}  // namespace pycompress

PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

struct Line {
  using V = __m256;
  static constexpr std::size_t lanes = 8;
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static V set1(float v) { return _mm256_set1_ps(v); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V expand(std::uint32_t bits, const std::uint16_t* values) {
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
    const __m256i from = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(places.of[bits])));
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), each), each);
    const __m256i moved = _mm256_permutevar8x32_epi32(_mm256_slli_epi32(words, 16), from);
    return _mm256_castsi256_ps(_mm256_and_si256(moved, kept));
  }
};

constexpr int tile_rows = 3, direct_rows = 2;
constexpr double mac_per_us = 2e4;

#include "../activation.inc"
//
#include "rounding.inc"
//
#include "loop.inc"

}  // namespace

void bf16_linear_avx2(const bf16_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
