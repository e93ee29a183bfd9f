// A pruned weight as steps, for a few rows: sparse_steps in sparse_linear.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../buffer.h"
#include "sparse_linear.h"

namespace pycompress {

class SparseSteps {
 public:
  static constexpr std::size_t most_inputs = sparse_step_align << 16;

  SparseSteps(const float* weight, std::size_t out, std::size_t in)
      : panels_((out + sparse_panel - 1) / sparse_panel), starts_(panels_ + 1), firsts_(panels_) {
    Lists lists;
    for (std::size_t p = 0; p < panels_; ++p) {
      firsts_.data()[p] = lists.values.size();
      const std::size_t first = p * sparse_panel;
      add_panel(weight + first * in, std::min(sparse_panel, out - first), in, lists);
      starts_.data()[p + 1] = lists.inputs.size();
    }
    inputs_ = Buffer<std::uint16_t>(lists.inputs);
    masks_ = Buffer<std::uint32_t>(lists.masks);
    places_ = Buffer<std::uint32_t>(lists.places);
    values_ = Buffer<float>(lists.values);
    steps_ = {panels_,       lists.inputs.size(), starts_.data(), firsts_.data(),
              inputs_.data(), masks_.data(),      places_.data(), values_.data()};
  }
  SparseSteps(const SparseSteps&) = delete;

  const sparse_steps& steps() const { return steps_; }
  std::size_t bytes() const {
    return starts_.bytes() + firsts_.bytes() + inputs_.bytes() + masks_.bytes() + places_.bytes() + values_.bytes();
  }

 private:
  struct Lists {
    std::vector<std::uint16_t> inputs;
    std::vector<std::uint32_t> masks, places;
    std::vector<float> values;
  };

  // Each step begins where the output that is furthest behind goes on, and takes from every output its next weight, if it
  // is near enough.
  static void add_panel(const float* weight, std::size_t outputs, std::size_t in, Lists& lists) {
    std::vector<std::uint32_t> inputs[sparse_panel];
    std::size_t left = 0, done[sparse_panel] = {};
    for (std::size_t o = 0; o < outputs; ++o) {
      for (std::size_t i = 0; i < in; ++i) {
        if (weight[o * in + i] != 0) inputs[o].push_back(static_cast<std::uint32_t>(i));
      }
      left += inputs[o].size();
    }
    std::size_t step = 0;
    for (; left > 0; step = (step + 1) % sparse_steps_group) {
      std::size_t first = in;
      for (std::size_t o = 0; o < outputs; ++o) {
        if (done[o] < inputs[o].size()) first = std::min<std::size_t>(first, inputs[o][done[o]]);
      }
      first -= first % sparse_step_align;
      if (step == 0) lists.places.resize(lists.places.size() + sparse_panel);
      std::uint32_t* places = lists.places.data() + lists.places.size() - sparse_panel;
      std::uint32_t mask = 0;
      for (std::size_t o = 0; o < outputs; ++o) {
        if (done[o] == inputs[o].size() || inputs[o][done[o]] >= first + sparse_window) continue;
        const std::size_t i = inputs[o][done[o]++];
        places[o] |= static_cast<std::uint32_t>((i - first) << step * sparse_place_bits);
        lists.values.push_back(weight[o * in + i]);
        mask |= std::uint32_t{1} << o;
        --left;
      }
      add_step(first / sparse_step_align, mask, lists);
    }
    for (; step % sparse_steps_group > 0; ++step) add_step(0, 0, lists);
  }

  static void add_step(std::size_t first, std::uint32_t mask, Lists& lists) {
    lists.inputs.push_back(static_cast<std::uint16_t>(first));
    lists.masks.push_back(mask);
  }

  std::size_t panels_;
  Buffer<std::size_t> starts_, firsts_;
  Buffer<std::uint16_t> inputs_;
  Buffer<std::uint32_t> masks_, places_;
  Buffer<float> values_;
  sparse_steps steps_;
};

}  // namespace pycompress
