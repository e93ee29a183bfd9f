// int8_linear on AVX-512 without VNNI: vpmaddwd on operands widened to int16, twice as wide as on AVX2.
// Tile: up to 6 rows x 32 outputs, a whole panel (24 registers of sums, each with two partial sums of 8 outputs).
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

using Activation = std::int16_t;
constexpr int activation_offset = 0;
constexpr int max_rows = 6;
constexpr double mac_per_us = 8e4;

template <int rows>
void accumulate(const Activation* q, std::size_t stride, const std::int8_t* panel, std::size_t first, std::size_t last,
                std::size_t groups, const std::int32_t*, std::int32_t* acc) {
  __m512i sum_i32x16[rows][4];
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < 4; ++j) sum_i32x16[r][j] = _mm512_setzero_si512();
  }
  for (std::size_t begin = first; begin < last;) {
    const std::size_t block = begin / 16, in_block = groups - block * 16 < 16 ? groups - block * 16 : 16;
    const std::size_t end = block * 16 + 16 < last ? block * 16 + 16 : last;
    const std::int8_t* line = panel + block * 2048;
    for (; begin < end; ++begin, line += 64) {
      __m512i weight_i16x32[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const std::int8_t* half = line + (j / 2) * in_block * 64 + (j % 2) * 32;
        weight_i16x32[j] = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
      }
#pragma GCC unroll 6
      for (int r = 0; r < rows; ++r) {
        std::int64_t four;
        __builtin_memcpy(&four, q + r * stride + begin * 4, 8);
        const __m512i a_i16x32 = _mm512_set1_epi64(four);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          sum_i32x16[r][j] = _mm512_add_epi32(sum_i32x16[r][j], _mm512_madd_epi16(a_i16x32, weight_i16x32[j]));
        }
      }
    }
  }
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < 4; j += 2) {
      const __m512i low = _mm512_permutex2var_epi32(sum_i32x16[r][j], even, sum_i32x16[r][j + 1]);
      const __m512i high = _mm512_permutex2var_epi32(sum_i32x16[r][j], odd, sum_i32x16[r][j + 1]);
      _mm512_storeu_si512(acc + r * int8_panel + j * 8, _mm512_add_epi32(low, high));
    }
  }
}

#include "loop.inc"

}  // namespace

void int8_linear_avx512(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
