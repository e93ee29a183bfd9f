// int8_depthwise for AVX2: two rows of the kernel in a lane, multiplied by vpmaddwd, which is exact.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_depthwise.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

#include "../int8_linear/micro_avx2.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "../int8_linear/images.inc"

constexpr std::size_t deep_lanes = 16, deep_taps = 2;
constexpr int deep_offset = 0;
using Woven = std::int16_t;

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// The shuffles of weave leave channels 8 l + 4 k + j (l, k < 2, j < 4) in lane 4 l + j of vector k.
std::size_t sum_place(std::size_t channel) { return channel / 4 % 2 * 8 + channel / 8 * 4 + channel % 4; }

template <int offset>
inline __attribute__((always_inline)) void weave(const std::int8_t* const* rows, std::size_t n, Woven* to) {
  __m256i row[2];
  for (int t = 0; t < 2; ++t) {
    alignas(16) std::int8_t local[16] = {};
    const std::int8_t* from = rows[t];
    if (n < 16) {
      __builtin_memcpy(local, from, n);
      from = local;
    }
    row[t] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_unpacklo_epi16(row[0], row[1]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 16), _mm256_unpackhi_epi16(row[0], row[1]));
}

template <int columns>
inline void deep_dots(const Woven* lanes, std::size_t step, const std::size_t* taps, std::size_t count,
                      const Woven* weight, const std::int32_t* start, std::int32_t (*sums)[deep_lanes]) {
  __m256i sum[columns][2];
#pragma GCC unroll 2
  for (int c = 0; c < columns; ++c) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) sum[c][k] = load(start + k * 8);
  }
  for (std::size_t i = 0; i < count; ++i, weight += 32) {
    const Woven* at = lanes + taps[i];
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const __m256i w = load(weight + k * 16);
#pragma GCC unroll 2
      for (int c = 0; c < columns; ++c) {
        sum[c][k] = _mm256_add_epi32(sum[c][k], _mm256_madd_epi16(load(at + c * step + k * 16), w));
      }
    }
  }
#pragma GCC unroll 2
  for (int c = 0; c < columns; ++c) {  // halves of both vectors in turns: channels in order
    auto* to = reinterpret_cast<__m256i*>(sums[c]);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(sum[c][0], sum[c][1], 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(sum[c][0], sum[c][1], 0x31));
  }
}

#include "loop.inc"

}  // namespace

void int8_depthwise_avx2(const int8_depthwise_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
