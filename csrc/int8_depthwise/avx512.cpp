// int8_depthwise for AVX-512: as on AVX2, with twice the channels.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_depthwise.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "../int8_linear/micro_avx512.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "../int8_linear/images.inc"

constexpr std::size_t deep_lanes = 32, deep_taps = 2;
constexpr int deep_offset = 0;
using Woven = std::int16_t;

// The shuffles of weave leave channels 8 l + 4 k + j (l < 4, k < 2, j < 4) in lane 4 l + j of vector k.
std::size_t sum_place(std::size_t channel) { return channel / 4 % 2 * 16 + channel / 8 * 4 + channel % 4; }

template <int offset>
inline __attribute__((always_inline)) void weave(const std::int8_t* const* rows, std::size_t n, Woven* to) {
  const __mmask32 mask = n >= 32 ? ~0u : (1u << n) - 1;
  const __m512i a = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, rows[0]));
  const __m512i b = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, rows[1]));
  _mm512_storeu_si512(to, _mm512_unpacklo_epi16(a, b));
  _mm512_storeu_si512(to + 32, _mm512_unpackhi_epi16(a, b));
}

template <int columns>
inline void deep_dots(const Woven* lanes, std::size_t step, const std::size_t* taps, std::size_t count,
                      const Woven* weight, const std::int32_t* start, std::int32_t (*sums)[deep_lanes]) {
  __m512i sum[columns][2];
#pragma GCC unroll 2
  for (int c = 0; c < columns; ++c) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) sum[c][k] = _mm512_loadu_si512(start + k * 16);
  }
  for (std::size_t i = 0; i < count; ++i, weight += 64) {
    const Woven* at = lanes + taps[i];
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const __m512i w = _mm512_loadu_si512(weight + k * 32);
#pragma GCC unroll 2
      for (int c = 0; c < columns; ++c) {
        sum[c][k] = _mm512_add_epi32(sum[c][k], _mm512_madd_epi16(_mm512_loadu_si512(at + c * step + k * 32), w));
      }
    }
  }
#pragma GCC unroll 2
  for (int c = 0; c < columns; ++c) {  // quarters of both vectors in turns: channels in order
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(sums[c], _mm512_permutex2var_epi64(sum[c][0], low, sum[c][1]));
    _mm512_storeu_si512(sums[c] + 16, _mm512_permutex2var_epi64(sum[c][0], high, sum[c][1]));
  }
}

#include "loop.inc"

}  // namespace

void int8_depthwise_avx512(const int8_depthwise_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
