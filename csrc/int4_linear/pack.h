// A 4-bit weight in the layout of int4_linear.h, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../buffer.h"
#include "int4_linear.h"

namespace pycompress {

// What a weight is made of; all arrays are in C order.
struct int4_parts {
  std::size_t out_features, in_features;
  std::size_t group;                 // a multiple of 32
  const std::int8_t* weight;         // [out, in]: 0..15 with zero points, else -8..7
  const std::uint16_t* scale;        // [out, groups] fp16, or null
  const std::uint8_t* zero_point;    // [out, groups], or null
  const std::uint8_t* multiplier;    // [out, groups] instead of scale, or null
  const float* channel_scale;        // [out] with multipliers
  const float* bias;                 // [out] or null
  bool int8_activations;
  float input_scale;
};

class Int4Packed {
 public:
  explicit Int4Packed(const int4_parts& p)
      : panels_((p.out_features + int4_panel - 1) / int4_panel),
        octets_((p.in_features + 7) / 8),
        groups_((p.in_features + p.group - 1) / p.group),
        codes_(panels_ * octets_ * 128),
        scale_(p.scale ? panels_ * groups_ * int4_panel : 0),
        zero_(p.zero_point ? panels_ * groups_ * int4_panel : 0),
        multiplier_(p.multiplier ? panels_ * groups_ * int4_panel : 0),
        sums_(p.multiplier ? panels_ * int4_panel : 0),
        channel_scale_(p.multiplier ? panels_ * int4_panel : 0),
        bias_(panels_ * int4_panel) {
    weight_ = {p.out_features, p.in_features, panels_, octets_, groups_, p.group / 8, codes_.data(), nullptr, nullptr, nullptr,
               nullptr, nullptr, bias_.data(), p.int8_activations, p.input_scale};
    std::fill_n(codes_.data(), codes_.bytes(), std::uint8_t{0x88});  // zeros where there is no weight
    const int offset = p.zero_point ? 0 : 8;
    for (std::size_t o = 0; o < p.out_features; ++o) {
      const std::int8_t* row = p.weight + o * p.in_features;
      for (std::size_t i = 0; i < p.in_features; ++i) {
        std::uint8_t& byte = codes_.data()[place(o, i)];
        const auto code = static_cast<unsigned>(row[i] + offset);
        byte = static_cast<std::uint8_t>(i % 8 < 4 ? (byte & 0xf0u) | code : (byte & 0x0fu) | code << 4);
      }
    }
    if (p.scale) weight_.scale = spread(p.scale, p.out_features, scale_);
    if (p.zero_point) weight_.zero = spread(p.zero_point, p.out_features, zero_);
    if (p.multiplier) {
      weight_.multiplier = spread(p.multiplier, p.out_features, multiplier_);
      for (std::size_t o = 0; o < p.out_features; ++o) {
        channel_scale_.data()[o] = p.channel_scale[o];
        for (std::size_t i = 0; i < p.in_features; ++i) {
          sums_.data()[o] += p.weight[o * p.in_features + i] * p.multiplier[o * groups_ + i / p.group];
        }
      }
      weight_.sums = sums_.data();
      weight_.channel_scale = channel_scale_.data();
    }
    if (p.bias) std::copy_n(p.bias, p.out_features, bias_.data());
  }
  Int4Packed(const Int4Packed&) = delete;

  void unpack(std::int8_t* to) const {  // [out, in]
    const int offset = weight_.zero ? 0 : 8;
    for (std::size_t o = 0; o < weight_.out_features; ++o) {
      for (std::size_t i = 0; i < weight_.in_features; ++i) {
        const unsigned byte = weight_.codes[place(o, i)];
        *to++ = static_cast<std::int8_t>(static_cast<int>(i % 8 < 4 ? byte & 15u : byte >> 4) - offset);
      }
    }
  }

  const int4_weight& weight() const { return weight_; }
  std::size_t bytes() const {
    return codes_.bytes() + scale_.bytes() + zero_.bytes() + multiplier_.bytes() + sums_.bytes() + channel_scale_.bytes() +
           bias_.bytes();
  }

 private:
  std::size_t place(std::size_t o, std::size_t i) const {
    return (o / int4_panel * octets_ + i / 8) * 128 + o % int4_panel * 4 + i % 4;
  }

  // [out, groups] -> [panels][groups][32]
  template <class T>
  const T* spread(const T* from, std::size_t out, Buffer<T>& to) const {
    for (std::size_t o = 0; o < out; ++o) {
      for (std::size_t g = 0; g < groups_; ++g) {
        to.data()[(o / int4_panel * groups_ + g) * int4_panel + o % int4_panel] = from[o * groups_ + g];
      }
    }
    return to.data();
  }

  std::size_t panels_, octets_, groups_;
  Buffer<std::uint8_t> codes_;
  Buffer<std::uint16_t> scale_;
  Buffer<std::uint8_t> zero_, multiplier_;
  Buffer<std::int64_t> sums_;
  Buffer<float> channel_scale_, bias_;
  int4_weight weight_;
};

}  // namespace pycompress
