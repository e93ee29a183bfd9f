// sparse_linear on AVX-512: as on AVX2 with lines of 16 rows; 64 rows of two outputs of equal count at a time (8 sums), or
// of four outputs of a group (16 sums).
//
// Limit, Zen 4 (a multiply-add, a load of a line or of a broadcast value a cycle; 118 GFLOPS): 8 multiply-adds of two
// outputs take 10 loads, 16 of four in a group take 8. At 128 rows, 70 and 80 %, 3072 x 768, 768 x 3072 and 4096 x 4096
// single outputs reach 62 to 67 % of the multiply-adds and groups 83 to 90 %, that is 1.29 to 1.38 times as fast; without
// the transposes 72 and 93 %.
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "vectors_avx512.inc"

constexpr double entry_us = 7e-4;

// [16][8] -> [8][16] with bias: eight whole cache lines of y. Where rows are 12 KB apart, writing lines by halves takes 1.2
// times as long (with 3072 outputs, 128 rows: 63 and 53 us, of 1200), and so do 16 lines at a time or all 64 of a panel;
// bias in a pass of its own: 1.02 to 1.03 for the whole call.
constexpr std::size_t strip = 16;
constexpr bool strip_adds = true;
void transpose_strip(const float* from, std::size_t from_stride, const float* bias, float* to, std::size_t to_stride) {
  __m512 r[8], t[8];
  for (int i = 0; i < 8; ++i) {  // outputs 0 and 4, 1 and 5, ... 8 and 12, ...
    const float* at = from + (i / 4 * 8 + i % 4) * from_stride;
    r[i] = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(at)), _mm256_loadu_ps(at + 4 * from_stride), 1);
  }
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int k = 0; k < 2; ++k) {
      r[i + 2 * k] = _mm512_shuffle_ps(t[i + k], t[i + k + 2], 0x44);
      r[i + 2 * k + 1] = _mm512_shuffle_ps(t[i + k], t[i + k + 2], 0xee);
    }
  }
  const __m512 add = _mm512_loadu_ps(bias);
  for (int i = 0; i < 4; ++i) {  // the even lanes of 128 bits are those of row i, the odd ones of row i + 4
    _mm512_storeu_ps(to + i * to_stride, _mm512_add_ps(_mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), add));
    _mm512_storeu_ps(to + (i + 4) * to_stride, _mm512_add_ps(_mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd), add));
  }
}

#include "../activation.inc"
//
#include "blocks.inc"
//
#include "loop.inc"
//
#include "steps_avx512.inc"

}  // namespace

void sparse_linear_avx512(const sparse_linear_call& call) { run_few(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
