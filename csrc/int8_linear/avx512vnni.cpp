// int8_linear on AVX-512 VNNI: vpdpbusd multiplies 64 unsigned by signed bytes and adds in int32 without saturating.
// Activations are kept as q + 128; 128 * sum(w) is subtracted by starting the sums there, exact modulo 2^32.
//
// Tile: up to 12 rows x 32 outputs, a whole panel: 24 sums + 2 weights + 1 broadcast activation in registers, 14 loads
// for 24 vpdpbusd. Few rows are limited by the stream of weights; 1 to 3 rows keep two sets of sums, because 2 to 6 sums
// alone would wait for the instruction's latency.
//
// The two tiles of a block lie 1 KiB apart, which the hardware prefetcher does not take for one stream: prefetching in
// the order of memory made 1 row of 4096 x 4096 from L3 two to three times faster (Zen 4), and costs nothing in L2.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512VNNI
namespace pycompress {
namespace {

using Activation = std::uint8_t;
constexpr int activation_offset = 128;
constexpr int max_rows = 12;
constexpr std::size_t prefetch_bytes = 4096;  // ahead; past the end of a weight it reads nothing
constexpr double mac_per_us = 2e5;

// Adds the products of one group to sums: 2 registers a row.
template <int rows>
inline __attribute__((always_inline)) void add_group(const Activation* q, std::size_t stride, const std::int8_t* line,
                                                     std::size_t tile_bytes, __m512i (&sum_i32x16)[rows][2]) {
  const __m512i weight0_i8x64 = _mm512_loadu_si512(line);
  const __m512i weight1_i8x64 = _mm512_loadu_si512(line + tile_bytes);
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    std::int32_t four;
    __builtin_memcpy(&four, q + r * stride, 4);
    const __m512i a_u8x64 = _mm512_set1_epi32(four);
    sum_i32x16[r][0] = _mm512_dpbusd_epi32(sum_i32x16[r][0], a_u8x64, weight0_i8x64);
    sum_i32x16[r][1] = _mm512_dpbusd_epi32(sum_i32x16[r][1], a_u8x64, weight1_i8x64);
  }
}

template <int rows>
void accumulate(const Activation* q, std::size_t stride, const std::int8_t* panel, std::size_t first, std::size_t last,
                std::size_t groups, const std::int32_t* sums, std::int32_t* acc) {
  constexpr int sets = rows <= 3 ? 2 : 1;
  __m512i sum_i32x16[sets][rows][2];
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m512i start = _mm512_slli_epi32(_mm512_loadu_si512(sums + j * 16), 7);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      sum_i32x16[0][r][j] = _mm512_sub_epi32(_mm512_setzero_si512(), start);
      if constexpr (sets == 2) sum_i32x16[1][r][j] = _mm512_setzero_si512();
    }
  }
  for (std::size_t begin = first; begin < last;) {
    const std::size_t block = begin / 16, in_block = groups - block * 16 < 16 ? groups - block * 16 : 16;
    const std::size_t end = block * 16 + 16 < last ? block * 16 + 16 : last, tile_bytes = in_block * 64;
    const std::int8_t* line = panel + block * 2048;
    for (; begin + sets <= end; begin += sets, line += 64 * sets) {
      // In the order of memory, so that the hardware prefetcher follows: it does not see the two tiles as one stream.
      for (int i = 0; i < 2 * sets; ++i) _mm_prefetch(panel + begin * 128 + prefetch_bytes + 64 * i, _MM_HINT_T0);
      add_group<rows>(q + begin * 4, stride, line, tile_bytes, sum_i32x16[0]);
      if constexpr (sets == 2) add_group<rows>(q + begin * 4 + 4, stride, line + 64, tile_bytes, sum_i32x16[1]);
    }
    if (begin < end) add_group<rows>(q + begin++ * 4, stride, line, tile_bytes, sum_i32x16[0]);
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      __m512i sum = sum_i32x16[0][r][j];
      if constexpr (sets == 2) sum = _mm512_add_epi32(sum, sum_i32x16[1][r][j]);
      _mm512_storeu_si512(acc + r * int8_panel + j * 16, sum);
    }
  }
}

#include "loop.inc"

}  // namespace

void int8_linear_avx512vnni(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
