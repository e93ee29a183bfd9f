// A weight of codes in the layout of codebook_linear.h, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../buffer.h"
#include "codebook_linear.h"

namespace pycompress {

// What a weight is made of; all arrays are in C order.
struct codebook_parts {
  std::size_t out_features, in_features;
  int bits;
  std::size_t group;              // with scale: a multiple of 32
  const std::int8_t* codes;       // [out, in], 0 to 2^bits - 1
  const std::int8_t* table;       // [2^bits], -127 to 127
  const std::uint16_t* scale;     // [out, groups] fp16, or null
  const float* channel_scale;     // instead: [out]
  const float* bias;              // [out] or null
  float input_scale;              // 0: dynamic
};

class CodebookPacked {
 public:
  explicit CodebookPacked(const codebook_parts& p)
      : bits_(static_cast<std::size_t>(p.bits)),
        strip_(32 / bits_),
        group_(p.scale ? p.group : codebook_section),
        panels_((p.out_features + codebook_panel - 1) / codebook_panel),
        strips_((p.in_features + strip_ - 1) / strip_),
        groups_((p.in_features + group_ - 1) / group_),
        codes_(panels_ * strips_ * 128),
        table_(16),
        scale_(p.scale ? panels_ * groups_ * codebook_panel : 0),
        channel_scale_(p.scale ? 0 : panels_ * codebook_panel),
        bias_(panels_ * codebook_panel) {
    weight_ = {p.out_features, p.in_features, p.bits, panels_, strips_, groups_, group_ / strip_, codes_.data(), table_.data(),
               nullptr, nullptr, bias_.data(), p.input_scale};
    for (std::size_t i = 0; i < 16; ++i) table_.data()[i] = p.table[i % (std::size_t{1} << bits_)];
    for (std::size_t o = 0; o < p.out_features; ++o) {
      for (std::size_t i = 0; i < p.in_features; ++i) {
        codes_.data()[place(o, i)] |= static_cast<std::uint8_t>(p.codes[o * p.in_features + i] << shift(i));
      }
    }
    if (p.scale) {
      weight_.scale = scale_.data();
      for (std::size_t o = 0; o < p.out_features; ++o) {
        for (std::size_t g = 0; g < groups_; ++g) {
          scale_.data()[(o / codebook_panel * groups_ + g) * codebook_panel + o % codebook_panel] = p.scale[o * groups_ + g];
        }
      }
    } else {
      weight_.channel_scale = channel_scale_.data();
      std::copy_n(p.channel_scale, p.out_features, channel_scale_.data());
    }
    if (p.bias) std::copy_n(p.bias, p.out_features, bias_.data());
  }
  CodebookPacked(const CodebookPacked&) = delete;

  void unpack(std::int8_t* to) const {  // [out, in], the numbers themselves
    for (std::size_t o = 0; o < weight_.out_features; ++o) {
      for (std::size_t i = 0; i < weight_.in_features; ++i) {
        *to++ = weight_.table[weight_.codes[place(o, i)] >> shift(i) & ((1u << bits_) - 1)];
      }
    }
  }

  const codebook_weight& weight() const { return weight_; }
  std::size_t bytes() const {
    return codes_.bytes() + table_.bytes() + scale_.bytes() + channel_scale_.bytes() + bias_.bytes();
  }

 private:
  std::size_t place(std::size_t o, std::size_t i) const {
    return (o / codebook_panel * strips_ + i / strip_) * 128 + o % codebook_panel * 4 + i % 4;
  }
  std::size_t shift(std::size_t i) const { return i % strip_ / 4 * bits_; }

  std::size_t bits_, strip_, group_, panels_, strips_, groups_;
  Buffer<std::uint8_t> codes_;
  Buffer<std::int8_t> table_;
  Buffer<std::uint16_t> scale_;
  Buffer<float> channel_scale_, bias_;
  codebook_weight weight_;
};

}  // namespace pycompress
