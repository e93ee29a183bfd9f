// A pruned weight in the layout of sparse_linear.h, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "../buffer.h"
#include "sparse_linear.h"
#include "steps.h"

namespace pycompress {

template <class Value>
class SparsePackedOf {
 public:
  // weight [out, in], bias [out] or null; height: outputs of a group, 1, 4, 8 or 16.
  SparsePackedOf(const Value* weight, const float* bias, std::size_t out, std::size_t in, std::size_t height)
      : height_(height), bias_(out) {
    // Enough tiles to share among threads, each high enough for runs of equal counts; whole groups.
    const std::size_t tile = std::clamp<std::size_t>((out / 4 + 15) / 16 * 16, 64, 256);
    const std::size_t tiles = (out + tile - 1) / tile, blocks = (in + sparse_block - 1) / sparse_block;
    for (std::size_t t = 0; t < tiles; ++t) {
      for (std::size_t b = 0; b < blocks; ++b) {
        add_part(weight + t * tile * in + b * sparse_block, in, std::min(tile, out - t * tile),
                 std::min(sparse_block, in - b * sparse_block));
      }
    }
    values_ = Buffer<Value>(list_);
    if (bias) std::copy_n(bias, out, bias_.data());
    weight_ = {out,           in,           list_.size(),    height,          tile,           tiles, blocks,
               parts_.data(), runs_.data(), outputs_.data(), columns_.data(), values_.data(), bias_.data()};
    list_ = {};
  }
  SparsePackedOf(const SparsePackedOf&) = delete;

  void unpack(Value* to) const {  // [out, in]
    std::fill_n(to, weight_.out_features * weight_.in_features, Value{});
    for (std::size_t p = 0; p < parts_.size(); ++p) {
      const std::size_t first_out = p / weight_.blocks * weight_.tile, first_in = p % weight_.blocks * sparse_block;
      std::size_t output = parts_[p].output, entry = parts_[p].entry;
      for (std::size_t r = parts_[p].run; r < parts_[p].run_end; ++r) {
        for (std::size_t g = 0; g < runs_[r].groups; ++g, ++output) {
          const std::size_t o = first_out + outputs_[output];
          for (std::size_t i = 0; i < runs_[r].count; ++i, ++entry) {
            for (std::size_t k = 0; k < std::min(height_, weight_.out_features - o); ++k) {
              to[(o + k) * weight_.in_features + first_in + columns_[entry]] = weight_.values[entry * height_ + k];
            }
          }
        }
      }
    }
  }

  const sparse_weight_of<Value>& weight() const { return weight_; }
  std::size_t bytes() const {
    return parts_.size() * sizeof(sparse_part) + runs_.size() * sizeof(sparse_run) + outputs_.size() +
           columns_.size() + values_.bytes() + bias_.bytes() + (steps_ ? steps_->bytes() : 0);
  }

  // The same weight as steps too (sparse_linear.h), where they can hold it and both, 10 bytes for a value that is not zero,
  // take no more memory than the dense weight.
  void add_steps(const float* weight) {
    if (height_ > 1 || weight_.in_features > SparseSteps::most_inputs) return;
    if (10 * weight_.stored > 4 * weight_.out_features * weight_.in_features) return;
    steps_.emplace(weight, weight_.out_features, weight_.in_features);
    weight_.steps = &steps_->steps();
  }

 private:
  // The part of `outputs` outputs and `width` inputs that starts at `weight`.
  void add_part(const Value* weight, std::size_t stride, std::size_t outputs, std::size_t width) {
    sparse_part part{};
    part.run = static_cast<std::uint32_t>(runs_.size());
    part.output = static_cast<std::uint32_t>(outputs_.size());
    part.entry = columns_.size();
    const auto is_kept = [&](std::size_t first, std::size_t i) {
      for (std::size_t o = first; o < std::min(first + height_, outputs); ++o) {
        if (weight[o * stride + i] != 0) return true;
      }
      return false;
    };
    std::vector<std::pair<std::size_t, std::size_t>> order;  // (count, first output of the group)
    for (std::size_t o = 0; o < outputs; o += height_) {
      std::size_t count = 0;
      for (std::size_t i = 0; i < width; ++i) count += is_kept(o, i);
      if (count > 0) order.emplace_back(count, o);
    }
    std::sort(order.begin(), order.end());
    for (const auto& [count, first] : order) {
      if (runs_.size() == part.run || runs_.back().count != count) {
        runs_.push_back({static_cast<std::uint16_t>(count), 0});
      }
      ++runs_.back().groups;
      outputs_.push_back(static_cast<std::uint8_t>(first));
      for (std::size_t i = 0; i < width; ++i) {
        if (!is_kept(first, i)) continue;
        columns_.push_back(static_cast<std::uint8_t>(i));
        for (std::size_t o = first; o < first + height_; ++o) {
          list_.push_back(o < outputs && weight[o * stride + i] != 0 ? weight[o * stride + i] : Value{});
        }
      }
    }
    part.run_end = static_cast<std::uint32_t>(runs_.size());
    parts_.push_back(part);
  }

  std::size_t height_;
  std::vector<sparse_part> parts_;
  std::vector<sparse_run> runs_;
  std::vector<std::uint8_t> outputs_, columns_;
  std::vector<Value> list_;  // values while they are collected
  Buffer<Value> values_;
  Buffer<float> bias_;
  std::optional<SparseSteps> steps_;
  sparse_weight_of<Value> weight_;
};

using SparsePacked = SparsePackedOf<float>;

}  // namespace pycompress
