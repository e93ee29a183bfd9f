// A weight of signs in the layout of binary_linear.h, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../buffer.h"
#include "binary_linear.h"

namespace pycompress {

class BinaryPacked {
 public:
  // weight [out, in], -1 or 1; scale [out]; bias [out] or null.
  BinaryPacked(std::size_t out, std::size_t in, const std::int8_t* weight, const float* scale, const float* bias)
      : panels_((out + binary_panel - 1) / binary_panel),
        words_((in + 63) / 64),
        bits_(panels_ * words_ * binary_panel),
        scale_(panels_ * binary_panel),
        bias_(panels_ * binary_panel) {
    weight_ = {out, in, panels_, words_, bits_.data(), scale_.data(), bias_.data()};
    for (std::size_t o = 0; o < out; ++o) {
      for (std::size_t i = 0; i < in; ++i) {
        bits_.data()[place(o, i)] |= std::uint64_t{weight[o * in + i] > 0} << i % 64;
      }
    }
    std::copy_n(scale, out, scale_.data());
    if (bias) std::copy_n(bias, out, bias_.data());
  }
  BinaryPacked(const BinaryPacked&) = delete;

  void unpack(std::int8_t* to) const {  // [out, in]
    for (std::size_t o = 0; o < weight_.out_features; ++o) {
      for (std::size_t i = 0; i < weight_.in_features; ++i) *to++ = weight_.bits[place(o, i)] >> i % 64 & 1 ? 1 : -1;
    }
  }

  const binary_weight& weight() const { return weight_; }
  std::size_t bytes() const { return bits_.bytes() + scale_.bytes() + bias_.bytes(); }

 private:
  std::size_t place(std::size_t o, std::size_t i) const {
    return (o / binary_panel * words_ + i / 64) * binary_panel + o % binary_panel;
  }

  std::size_t panels_, words_;
  Buffer<std::uint64_t> bits_;
  Buffer<float> scale_, bias_;
  binary_weight weight_;
};

}  // namespace pycompress
