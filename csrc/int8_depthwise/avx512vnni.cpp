// int8_depthwise for AVX-512 VNNI: four rows of the kernel in a lane, multiplied by vpdpbusd as q + 128 (see loop.inc).
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_depthwise.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512VNNI
namespace pycompress {
namespace {

#include "../int8_linear/micro_avx512vnni.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "../int8_linear/images.inc"

constexpr std::size_t deep_lanes = 64, deep_taps = 4;
constexpr int deep_offset = 128;
using Woven = std::uint8_t;

// The shuffles of weave leave channels 16 l + 4 k + j (l, k, j < 4) in lane 4 l + j of vector k.
std::size_t sum_place(std::size_t channel) { return channel / 4 % 4 * 16 + channel / 16 * 4 + channel % 4; }

template <int offset>
inline __attribute__((always_inline)) void weave(const std::int8_t* const* rows, std::size_t n, Woven* to) {
  const __mmask64 mask = n >= 64 ? ~0ull : (1ull << n) - 1;
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(offset));
  __m512i row[4];
#pragma GCC unroll 4
  for (int t = 0; t < 4; ++t) row[t] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, rows[t]), flip);
  const __m512i low[2] = {_mm512_unpacklo_epi8(row[0], row[1]), _mm512_unpacklo_epi8(row[2], row[3])};
  const __m512i high[2] = {_mm512_unpackhi_epi8(row[0], row[1]), _mm512_unpackhi_epi8(row[2], row[3])};
  _mm512_storeu_si512(to, _mm512_unpacklo_epi16(low[0], low[1]));
  _mm512_storeu_si512(to + 64, _mm512_unpackhi_epi16(low[0], low[1]));
  _mm512_storeu_si512(to + 128, _mm512_unpacklo_epi16(high[0], high[1]));
  _mm512_storeu_si512(to + 192, _mm512_unpackhi_epi16(high[0], high[1]));
}

template <int columns>
inline void deep_dots(const Woven* lanes, std::size_t step, const std::size_t* taps, std::size_t count,
                      const Woven* weight, const std::int32_t* start, std::int32_t (*sums)[deep_lanes]) {
  __m512i sum[columns][4];
#pragma GCC unroll 2
  for (int c = 0; c < columns; ++c) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) sum[c][k] = _mm512_loadu_si512(start + k * 16);
  }
  for (std::size_t i = 0; i < count; ++i, weight += 256) {
    const Woven* at = lanes + taps[i];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const __m512i w = _mm512_loadu_si512(weight + k * 64);
#pragma GCC unroll 2
      for (int c = 0; c < columns; ++c) {
        sum[c][k] = _mm512_dpbusd_epi32(sum[c][k], _mm512_loadu_si512(at + c * step + k * 64), w);
      }
    }
  }
#pragma GCC unroll 2
  for (int c = 0; c < columns; ++c) {  // a 4 x 4 transposition of quarters: channels in order
    const __m512i a = _mm512_shuffle_i32x4(sum[c][0], sum[c][1], 0x44), b = _mm512_shuffle_i32x4(sum[c][0], sum[c][1], 0xee);
    const __m512i d = _mm512_shuffle_i32x4(sum[c][2], sum[c][3], 0x44), e = _mm512_shuffle_i32x4(sum[c][2], sum[c][3], 0xee);
    _mm512_storeu_si512(sums[c], _mm512_shuffle_i32x4(a, d, 0x88));
    _mm512_storeu_si512(sums[c] + 16, _mm512_shuffle_i32x4(a, d, 0xdd));
    _mm512_storeu_si512(sums[c] + 32, _mm512_shuffle_i32x4(b, e, 0x88));
    _mm512_storeu_si512(sums[c] + 48, _mm512_shuffle_i32x4(b, e, 0xdd));
  }
}

#include "loop.inc"

}  // namespace

void int8_depthwise_avx512vnni(const int8_depthwise_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
