// kth_magnitude on AVX2: eight magnitudes are compared at a time; the few inside the bracket are taken out by the bits of
// the comparison's mask.
#include "../isa.h"
#include "kth_magnitude.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

#include "../element.inc"

inline __m256i eight(const float* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }
inline __m256i eight(const half* x) {
  return _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
}
inline __m256i eight(const bfloat* x) {
  return _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))), 16);
}

template <class T>
std::size_t filter_as(const T* x, std::size_t n, std::uint32_t low, std::uint32_t high, std::uint32_t* kept,
                      std::uint64_t* below, std::uint32_t* largest) {
  // Bits without the sign are non-negative, so signed comparisons order them.
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  const __m256i low_i32x8 = _mm256_set1_epi32(static_cast<int>(low));
  const __m256i high_i32x8 = _mm256_set1_epi32(static_cast<int>(high));
  __m256i most_i32x8 = _mm256_setzero_si256(), below_i32x8 = _mm256_setzero_si256();
  std::size_t size = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i bits = _mm256_and_si256(eight(x + i), magnitude);
    const __m256i under = _mm256_cmpgt_epi32(low_i32x8, bits);
    const __m256i outside = _mm256_or_si256(under, _mm256_cmpgt_epi32(bits, high_i32x8));
    most_i32x8 = _mm256_max_epi32(most_i32x8, bits);
    below_i32x8 = _mm256_sub_epi32(below_i32x8, under);
    unsigned inside = ~static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(outside))) & 0xffu;
    for (; inside; inside &= inside - 1) kept[size++] = key(widen(x[i + static_cast<unsigned>(__builtin_ctz(inside))]));
  }
  alignas(32) std::uint32_t most[8], under[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(most), most_i32x8);
  _mm256_store_si256(reinterpret_cast<__m256i*>(under), below_i32x8);
  for (int l = 0; l < 8; ++l) {
    *below += under[l];
    *largest = most[l] > *largest ? most[l] : *largest;
  }
  for (; i < n; ++i) {
    const std::uint32_t bits = key(widen(x[i]));
    *largest = bits > *largest ? bits : *largest;
    *below += bits < low;
    kept[size] = bits;
    size += bits >= low && bits <= high;
  }
  return size;
}

std::size_t filter(const void* x, Element type, std::size_t n, std::uint32_t low, std::uint32_t high,
                   std::uint32_t* kept, std::uint64_t* below, std::uint32_t* largest) {
  std::size_t size = 0;
  with_element(type, x, [&](const auto* p) { size = filter_as(p, n, low, high, kept, below, largest); });
  return size;
}

}  // namespace

void kth_magnitude_avx2(const kth_magnitude_call& call) { select_kth(call, filter); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
