// kth_magnitude on AVX-512: sixteen magnitudes are compared at a time. Those inside the bracket are compressed in a
// register and stored whole: a compressing store to memory is microcode on Zen 4.
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
                      std::size_t room, std::uint64_t* below, std::uint32_t* largest) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i low_u32x16 = _mm512_set1_epi32(static_cast<int>(low));
  const __m512i high_u32x16 = _mm512_set1_epi32(static_cast<int>(high));
  __m512i most_u32x16 = _mm512_setzero_si512();
  std::size_t size = 0;
  std::uint64_t under = 0;
  for (std::size_t i = 0; i < n; i += 16) {
    const __mmask16 here = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512i bits = _mm512_and_si512(sixteen(x + i, here), magnitude);
    const __mmask16 is_below = _mm512_mask_cmplt_epu32_mask(here, bits, low_u32x16);
    const __mmask16 inside = _mm512_mask_cmple_epu32_mask(here & ~is_below, bits, high_u32x16);
    most_u32x16 = _mm512_max_epu32(most_u32x16, bits);
    under += static_cast<unsigned>(__builtin_popcount(is_below));
    if (inside) {
      const int count = __builtin_popcount(inside);
      const __m512i packed = _mm512_maskz_compress_epi32(inside, bits);
      const std::size_t left = room - size;
      const __mmask16 fits = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      _mm512_mask_storeu_epi32(kept + size, fits, packed);
      size += static_cast<std::size_t>(count);
    }
  }
  *below += under;
  const std::uint32_t most = _mm512_reduce_max_epu32(most_u32x16);
  *largest = most > *largest ? most : *largest;
  return size;
}

std::size_t filter(const void* x, Element type, std::size_t n, std::uint32_t low, std::uint32_t high,
                   std::uint32_t* kept, std::size_t room, std::uint64_t* below, std::uint32_t* largest) {
  std::size_t size = 0;
  with_element(type, x, [&](const auto* p) { size = filter_as(p, n, low, high, kept, room, below, largest); });
  return size;
}

}  // namespace

void kth_magnitude_avx512(const kth_magnitude_call& call) { select_kth(call, filter); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
