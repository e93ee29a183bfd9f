// int8_linear on AVX2. The instruction that makes it exact: vpmaddwd on operands widened to int16 (vpmaddubsw would
// saturate on full-range values). Limit: two multiply-add instructions for 16 products, about half of the machine's
// vector ALU slots; weights are widened once for all rows of a tile.
//
// Tile: up to 4 rows x 8 outputs (8 sums in registers); 1 or 2 rows take 16 outputs, a whole 64-byte line, so that a
// weight that comes from memory is read in order. A register of sums holds two partial sums of each output, added at
// the end.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

using Activation = std::int16_t;
constexpr int activation_offset = 0;
constexpr int max_rows = 4;
constexpr double mac_per_us = 5e4;

// Sums of `rows` rows for the 4 * registers outputs from `quarter` * 4 of tile `tile` on.
template <int rows, int registers>
void accumulate_part(const Activation* q, std::size_t stride, const std::int8_t* panel, std::size_t first,
                     std::size_t last, std::size_t groups, std::size_t tile, std::size_t quarter, std::int32_t* acc) {
  __m256i sum_i32x8[rows][registers];
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < registers; ++j) sum_i32x8[r][j] = _mm256_setzero_si256();
  }
  for (std::size_t begin = first; begin < last;) {
    const std::size_t block = begin / 16, in_block = groups - block * 16 < 16 ? groups - block * 16 : 16;
    const std::size_t end = block * 16 + 16 < last ? block * 16 + 16 : last;
    const std::int8_t* line = panel + block * 2048 + tile * in_block * 64 + quarter * 16;
    for (; begin < end; ++begin, line += 64) {
      __m256i weight_i16x16[registers];
#pragma GCC unroll 4
      for (int j = 0; j < registers; ++j) {
        weight_i16x16[j] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(line + j * 16)));
      }
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        std::int64_t four;
        __builtin_memcpy(&four, q + r * stride + begin * 4, 8);
        const __m256i a_i16x16 = _mm256_set1_epi64x(four);
#pragma GCC unroll 4
        for (int j = 0; j < registers; ++j) {
          sum_i32x8[r][j] = _mm256_add_epi32(sum_i32x8[r][j], _mm256_madd_epi16(a_i16x16, weight_i16x16[j]));
        }
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    std::int32_t* out = acc + r * int8_panel + tile * 16 + quarter * 4;
    for (int j = 0; j < registers; j += 2) {
      const __m256i pairs = _mm256_hadd_epi32(sum_i32x8[r][j], sum_i32x8[r][j + 1]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j * 4), _mm256_permute4x64_epi64(pairs, 0xd8));
    }
  }
}

template <int rows>
void accumulate(const Activation* q, std::size_t stride, const std::int8_t* panel, std::size_t first, std::size_t last,
                std::size_t groups, const std::int32_t*, std::int32_t* acc) {
  constexpr int registers = rows <= 2 ? 4 : 2;
  for (std::size_t tile = 0; tile < 2; ++tile) {
    for (std::size_t quarter = 0; quarter < 4; quarter += registers) {
      accumulate_part<rows, registers>(q, stride, panel, first, last, groups, tile, quarter, acc);
    }
  }
}

#include "loop.inc"

}  // namespace

void int8_linear_avx2(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
