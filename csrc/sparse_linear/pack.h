// A pruned weight in the layout of sparse_linear.h, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "../buffer.h"
#include "sparse_linear.h"

namespace pycompress {

class SparsePacked {
 public:
  // weight [out, in], bias [out] or null.
  SparsePacked(const float* weight, const float* bias, std::size_t out, std::size_t in) : bias_(out) {
    // Enough tiles to share among threads, each high enough for runs of equal counts.
    const std::size_t tile = std::clamp<std::size_t>((out / 4 + 15) / 16 * 16, 64, 256);
    const std::size_t tiles = (out + tile - 1) / tile, blocks = (in + sparse_block - 1) / sparse_block;
    for (std::size_t t = 0; t < tiles; ++t) {
      for (std::size_t b = 0; b < blocks; ++b) {
        add_part(weight + t * tile * in + b * sparse_block, in, std::min(tile, out - t * tile),
                 std::min(sparse_block, in - b * sparse_block));
      }
    }
    if (bias) std::copy_n(bias, out, bias_.data());
    weight_ = {out,           in,           values_.size(),  tile,            tiles,          blocks,
               parts_.data(), runs_.data(), outputs_.data(), columns_.data(), values_.data(), bias_.data()};
  }
  SparsePacked(const SparsePacked&) = delete;

  void unpack(float* to) const {  // [out, in]
    std::fill_n(to, weight_.out_features * weight_.in_features, 0.0f);
    for (std::size_t p = 0; p < parts_.size(); ++p) {
      const std::size_t first_out = p / weight_.blocks * weight_.tile, first_in = p % weight_.blocks * sparse_block;
      std::size_t output = parts_[p].output, entry = parts_[p].entry;
      for (std::size_t r = parts_[p].run; r < parts_[p].run_end; ++r) {
        for (std::size_t o = 0; o < runs_[r].outputs; ++o, ++output) {
          float* row = to + (first_out + outputs_[output]) * weight_.in_features + first_in;
          for (std::size_t i = 0; i < runs_[r].count; ++i, ++entry) row[columns_[entry]] = values_[entry];
        }
      }
    }
  }

  const sparse_weight& weight() const { return weight_; }
  std::size_t bytes() const {
    return parts_.size() * sizeof(sparse_part) + runs_.size() * sizeof(sparse_run) + outputs_.size() +
           columns_.size() + values_.size() * sizeof(float) + bias_.bytes();
  }

 private:
  // The part of `height` outputs and `width` inputs that starts at `weight`.
  void add_part(const float* weight, std::size_t stride, std::size_t height, std::size_t width) {
    sparse_part part{};
    part.run = static_cast<std::uint32_t>(runs_.size());
    part.output = static_cast<std::uint32_t>(outputs_.size());
    part.entry = values_.size();
    std::vector<std::pair<std::size_t, std::size_t>> order;  // (count, output)
    for (std::size_t o = 0; o < height; ++o) {
      const float* row = weight + o * stride;
      const auto count = static_cast<std::size_t>(std::count_if(row, row + width, [](float v) { return v != 0; }));
      if (count > 0) order.emplace_back(count, o);
    }
    std::sort(order.begin(), order.end());
    for (const auto& [count, o] : order) {
      if (runs_.size() == part.run || runs_.back().count != count) {
        runs_.push_back({static_cast<std::uint16_t>(count), 0});
      }
      ++runs_.back().outputs;
      outputs_.push_back(static_cast<std::uint8_t>(o));
      const float* row = weight + o * stride;
      for (std::size_t i = 0; i < width; ++i) {
        if (row[i] == 0) continue;
        columns_.push_back(static_cast<std::uint8_t>(i));
        values_.push_back(row[i]);
      }
    }
    part.run_end = static_cast<std::uint32_t>(runs_.size());
    parts_.push_back(part);
  }

  std::vector<sparse_part> parts_;
  std::vector<sparse_run> runs_;
  std::vector<std::uint8_t> outputs_, columns_;
  std::vector<float> values_;
  Buffer<float> bias_;
  sparse_weight weight_;
};

}  // namespace pycompress
