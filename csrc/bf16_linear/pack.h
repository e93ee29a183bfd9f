// A bfloat16 weight in the layout of bf16_linear.h, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../buffer.h"
#include "bf16_linear.h"

namespace pycompress {

class Bf16Packed {
 public:
  // weight [out, in], whose numbers are bfloat16; bias [out] or null.
  Bf16Packed(const float* weight, const float* bias, std::size_t out, std::size_t in)
      : panels_((out + bf16_panel - 1) / bf16_panel),
        masks_(panels_ * in),
        starts_(panels_ + 1),
        bias_(panels_ * bf16_panel) {
    std::vector<std::uint16_t> values;
    for (std::size_t panel = 0; panel < panels_; ++panel) {
      const std::size_t first = panel * bf16_panel, height = std::min(bf16_panel, out - first);
      for (std::size_t i = 0; i < in; ++i) {
        for (std::size_t o = 0; o < height; ++o) {
          const float value = weight[(first + o) * in + i];
          if (value == 0) continue;
          std::uint32_t bits;
          std::memcpy(&bits, &value, sizeof bits);
          values.push_back(static_cast<std::uint16_t>(bits >> 16));
          masks_.data()[panel * in + i] |= std::uint32_t{1} << o;
        }
      }
      starts_.data()[panel + 1] = values.size();
    }
    values_ = Buffer<std::uint16_t>(values);
    if (bias) std::copy_n(bias, out, bias_.data());
    weight_ = {out, in, panels_, masks_.data(), starts_.data(), values_.data(), bias_.data()};
  }
  Bf16Packed(const Bf16Packed&) = delete;

  void unpack(float* to) const {  // [out, in]
    std::fill_n(to, weight_.out_features * weight_.in_features, 0.0f);
    const std::uint16_t* value = weight_.values;
    for (std::size_t at = 0; at < panels_ * weight_.in_features; ++at) {
      const std::size_t first = at / weight_.in_features * bf16_panel, i = at % weight_.in_features;
      for (std::size_t o = 0; o < bf16_panel; ++o) {
        if ((weight_.masks[at] >> o & 1) == 0) continue;
        const std::uint32_t bits = static_cast<std::uint32_t>(*value++) << 16;
        std::memcpy(to + (first + o) * weight_.in_features + i, &bits, sizeof bits);
      }
    }
  }

  const bf16_weight& weight() const { return weight_; }
  std::size_t bytes() const { return masks_.bytes() + starts_.bytes() + values_.bytes() + bias_.bytes(); }

 private:
  std::size_t panels_;
  Buffer<std::uint32_t> masks_;
  Buffer<std::size_t> starts_;
  Buffer<std::uint16_t> values_;
  Buffer<float> bias_;
  bf16_weight weight_;
};

}  // namespace pycompress
