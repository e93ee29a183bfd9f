// An int8 weight in the layout of int8_linear.h, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../buffer.h"
#include "../isa.h"
#include "int8_linear.h"

namespace pycompress {

class Int8Packed {
 public:
  // `at(o, i)` gives the weight of an output and an input.
  template <class At>
  Int8Packed(std::size_t out, std::size_t in, At at) : Int8Packed(out, in) {
    each_line([=](std::size_t o, std::size_t i, std::int8_t* line, std::int32_t* sums) {
      const auto from = [=](std::size_t j, std::size_t k) { return at(o + j, i + k); };
      pack_line(line, sums, std::min<std::size_t>(16, weight_.out_features - o),
                std::min<std::size_t>(4, weight_.in_features - i), from);
    });
  }

  // From b [in, out], the second factor of a product of matrices: 4 rows of 16 bytes are woven into a line.
  static Int8Packed transposed(const std::int8_t* b, std::size_t in, std::size_t out) {
    Int8Packed packed(out, in);
    packed.each_line([=](std::size_t o, std::size_t i, std::int8_t* line, std::int32_t* sums) {
      const std::int8_t* from = b + i * out + o;
#if PYCOMPRESS_X86
      if (o + 16 <= out && i + 4 <= in) return weave(from, out, line, sums);
#endif
      const auto at = [=](std::size_t j, std::size_t k) { return from[k * out + j]; };
      pack_line(line, sums, std::min<std::size_t>(16, out - o), std::min<std::size_t>(4, in - i), at);
    });
    return packed;
  }

  // scale [out]; bias [out] or null; input_scale 0 for dynamic.
  void set(const float* scale, const float* bias, float input_scale) {
    std::copy_n(scale, weight_.out_features, scale_.data());
    if (bias) std::copy_n(bias, weight_.out_features, bias_.data());
    weight_.input_scale = input_scale;
  }

  void unpack(std::int8_t* to) const {  // [out, in]
    for (std::size_t o = 0; o < weight_.out_features; ++o) {
      for (std::size_t i = 0; i < weight_.in_features; ++i) *to++ = weight_.data[offset(o, i)];
    }
  }

  const int8_weight& weight() const { return weight_; }
  std::size_t bytes() const { return data_.bytes() + sums_.bytes() + scale_.bytes() + bias_.bytes(); }

 private:
  Int8Packed(std::size_t out, std::size_t in)
      : panels_((out + int8_panel - 1) / int8_panel),
        data_(panels_ * ((in + 3) / 4) * 128),
        sums_((in / int8_sum_chunk + 1) * panels_ * int8_panel),
        scale_(panels_ * int8_panel),
        bias_(panels_ * int8_panel) {
    weight_ = {out, in, panels_, (in + 3) / 4, data_.data(), sums_.data(), scale_.data(), bias_.data(), 0.0f};
  }

  // Calls pack(o, i, line, sums) for each line that holds weights: its first output and input, and where they go.
  template <class Pack>
  void each_line(Pack pack) {
    for (std::size_t panel = 0; panel < panels_; ++panel) {
      for (std::size_t i = 0; i < weight_.in_features; i += 4) {
        std::int32_t* sums = sums_.data() + (i / int8_sum_chunk * panels_ + panel) * int8_panel;
        const std::size_t end = std::min(weight_.out_features, (panel + 1) * int8_panel);
        for (std::size_t o = panel * int8_panel; o < end; o += 16, sums += 16) pack(o, i, data_.data() + offset(o, i), sums);
      }
    }
  }

  std::size_t offset(std::size_t o, std::size_t i) const {
    const std::size_t panel = o / int8_panel, tile = o % int8_panel / 16, block = i / 64;
    const std::size_t in_block = std::min<std::size_t>(16, weight_.groups - block * 16);
    return panel * weight_.groups * 128 + block * 2048 + tile * in_block * 64 + i % 64 / 4 * 64 + o % 16 * 4 + i % 4;
  }

  // One line of 16 outputs x 4 inputs, and its share of the sums of each output.
  template <class At>
  static void pack_line(std::int8_t* line, std::int32_t* sums, std::size_t outputs, std::size_t inputs, At at) {
    if (outputs == 16 && inputs == 4) {  // constants: the compiler unrolls it
      for (std::size_t k = 0; k < 4; ++k) {
        for (std::size_t j = 0; j < 16; ++j) put(line, sums, j, k, at(j, k));
      }
      return;
    }
    for (std::size_t k = 0; k < inputs; ++k) {
      for (std::size_t j = 0; j < outputs; ++j) put(line, sums, j, k, at(j, k));
    }
  }

  static void put(std::int8_t* line, std::int32_t* sums, std::size_t j, std::size_t k, std::int8_t value) {
    line[j * 4 + k] = value;
    sums[j] += value;
  }

#if PYCOMPRESS_X86
  static void weave(const std::int8_t* from, std::size_t stride, std::int8_t* line, std::int32_t* sums) {
    __m128i row[4], half[4];
    for (std::size_t k = 0; k < 4; ++k) row[k] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k * stride));
    half[0] = _mm_unpacklo_epi8(row[0], row[1]);  // outputs 0..7, inputs 0 and 1
    half[1] = _mm_unpacklo_epi8(row[2], row[3]);
    half[2] = _mm_unpackhi_epi8(row[0], row[1]);
    half[3] = _mm_unpackhi_epi8(row[2], row[3]);
    for (std::size_t h = 0; h < 4; h += 2) {
      const __m128i quads[2] = {_mm_unpacklo_epi16(half[h], half[h + 1]), _mm_unpackhi_epi16(half[h], half[h + 1])};
      // both bytes of each word, sign-extended, added: the sum of two inputs; then of the other two
      __m128i words = _mm_setzero_si128();
      for (std::size_t p = h; p < h + 2; ++p) {
        words = _mm_add_epi16(words, _mm_add_epi16(_mm_srai_epi16(half[p], 8),
                                                   _mm_srai_epi16(_mm_slli_epi16(half[p], 8), 8)));
      }
      for (std::size_t q = 0; q < 2; ++q) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(line + h * 16 + q * 16), quads[q]);
        auto* to = reinterpret_cast<__m128i*>(sums + h * 4 + q * 4);
        const __m128i wide = q == 0 ? _mm_unpacklo_epi16(words, words) : _mm_unpackhi_epi16(words, words);
        _mm_storeu_si128(to, _mm_add_epi32(_mm_loadu_si128(to), _mm_srai_epi32(wide, 16)));
      }
    }
  }
#endif

  std::size_t panels_;
  Buffer<std::int8_t> data_;
  Buffer<std::int32_t> sums_;
  Buffer<float> scale_, bias_;
  int8_weight weight_;
};

}  // namespace pycompress
