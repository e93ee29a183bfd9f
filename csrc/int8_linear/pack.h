// An int8 weight in the layout of int8_linear.h, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../buffer.h"
#include "int8_linear.h"

namespace pycompress {

class Int8Packed {
 public:
  // `at(o, i)` gives the weight of an output and an input.
  template <class At>
  Int8Packed(std::size_t out, std::size_t in, At at)
      : panels_((out + int8_panel - 1) / int8_panel),
        data_(panels_ * ((in + 3) / 4) * 128),
        sums_((in / int8_sum_chunk + 1) * panels_ * int8_panel),
        scale_(panels_ * int8_panel),
        bias_(panels_ * int8_panel) {
    weight_ = {out, in, panels_, (in + 3) / 4, data_.data(), sums_.data(), scale_.data(), bias_.data(), 0.0f};
    for (std::size_t panel = 0; panel < panels_; ++panel) {
      for (std::size_t i = 0; i < in; i += 4) {
        std::int32_t* sums = sums_.data() + (i / int8_sum_chunk * panels_ + panel) * int8_panel;
        for (std::size_t o = panel * int8_panel; o < std::min(out, (panel + 1) * int8_panel); o += 16, sums += 16) {
          std::int8_t* line = data_.data() + offset(o, i);
          const auto from = [=](std::size_t j, std::size_t k) { return at(o + j, i + k); };
          if (o + 16 <= out && i + 4 <= in) {
            pack_line(line, sums, 16, 4, from);  // constants: the compiler unrolls it
          } else {
            pack_line(line, sums, std::min<std::size_t>(16, out - o), std::min<std::size_t>(4, in - i), from);
          }
        }
      }
    }
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
  std::size_t offset(std::size_t o, std::size_t i) const {
    const std::size_t panel = o / int8_panel, tile = o % int8_panel / 16, block = i / 64;
    const std::size_t in_block = std::min<std::size_t>(16, weight_.groups - block * 16);
    return panel * weight_.groups * 128 + block * 2048 + tile * in_block * 64 + i % 64 / 4 * 64 + o % 16 * 4 + i % 4;
  }

  // One line of 16 outputs x 4 inputs, and its share of the sums of each output.
  template <class At>
  static void pack_line(std::int8_t* line, std::int32_t* sums, std::size_t outputs, std::size_t inputs, At at) {
    for (std::size_t k = 0; k < inputs; ++k) {
      for (std::size_t j = 0; j < outputs; ++j) {
        line[j * 4 + k] = at(j, k);
        sums[j] += at(j, k);
      }
    }
  }

  std::size_t panels_;
  Buffer<std::int8_t> data_;
  Buffer<std::int32_t> sums_;
  Buffer<float> scale_, bias_;
  int8_weight weight_;
};

}  // namespace pycompress
