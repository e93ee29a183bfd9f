// kth_magnitude on AVX-512: sixteen magnitudes are compared at a time. Those inside the bracket are compressed in a
// register and stored whole: a compressing store to memory is microcode on Zen 4. Nothing branches on them, and counts
// stay in a register: where a hundredth lies inside, a branch is wrong for every fifth vector.
#include "../isa.h"
#include "kth_magnitude.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "../element.inc"

inline __m512i sixteen(const float* x, __mmask16 here) { return _mm512_maskz_loadu_epi32(here, x); }
inline __m512i sixteen(const half* x, __mmask16 here) {
  return _mm512_castps_si512(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(here, x)));
}
inline __m512i sixteen(const bfloat* x, __mmask16 here) {
  return _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(here, x)), 16);
}

template <class T>
std::size_t filter_as(const T* x, std::size_t n, std::uint32_t low, std::uint32_t high, std::uint32_t* kept,
                      std::uint64_t* below, std::uint32_t* largest) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i low_u32x16 = _mm512_set1_epi32(static_cast<int>(low));
  const __m512i width_u32x16 = _mm512_set1_epi32(static_cast<int>(high - low));
  __m512i most_u32x16 = _mm512_setzero_si512(), below_u32x16 = _mm512_setzero_si512();
  std::size_t size = 0, i = 0;
  const auto take = [&](__mmask16 here, __m512i bits) {
    const __m512i over = _mm512_sub_epi32(bits, low_u32x16);  // negative below the bracket: both are below 2^31
    const __mmask16 inside = _mm512_mask_cmple_epu32_mask(here, over, width_u32x16);
    most_u32x16 = _mm512_max_epu32(most_u32x16, bits);
    below_u32x16 = _mm512_add_epi32(below_u32x16, _mm512_maskz_srli_epi32(here, over, 31));
    _mm512_storeu_si512(kept + size, _mm512_maskz_compress_epi32(inside, bits));
    size += static_cast<unsigned>(__builtin_popcount(inside));
  };
  for (; i + 32 <= n; i += 32) {
    take(0xffff, _mm512_and_si512(sixteen(x + i, 0xffff), magnitude));
    take(0xffff, _mm512_and_si512(sixteen(x + i + 16, 0xffff), magnitude));
  }
  for (; i < n; i += 16) {
    const __mmask16 here = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    take(here, _mm512_and_si512(sixteen(x + i, here), magnitude));
  }
  *below += static_cast<unsigned>(_mm512_reduce_add_epi32(below_u32x16));
  const std::uint32_t most = _mm512_reduce_max_epu32(most_u32x16);
  *largest = most > *largest ? most : *largest;
  return size;
}

std::size_t filter(const void* x, Element type, std::size_t n, std::uint32_t low, std::uint32_t high,
                   std::uint32_t* kept, std::uint64_t* below, std::uint32_t* largest) {
  std::size_t size = 0;
  with_element(type, x, [&](const auto* p) { size = filter_as(p, n, low, high, kept, below, largest); });
  return size;
}

}  // namespace

void kth_magnitude_avx512(const kth_magnitude_call& call) { select_kth(call, filter); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
