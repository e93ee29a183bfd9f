// A call of int8_linear, and its result at one level.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../../csrc/int8_linear/pack.h"
#include "levels.h"

namespace pycompress {
namespace {

struct Problem {
  std::vector<std::unique_ptr<Int8Packed>> layers;
  std::vector<std::shared_ptr<Int8Packed>> dense;  // the same weights, none of them sparse
  bool sparse = false;
  std::vector<int> activations;
  std::size_t rows = 0;
  std::unique_ptr<Guarded<float>> x, residual;
  std::unique_ptr<Guarded<std::int8_t>> q;
  Output output = Output::f32;
  float output_scale = 0;
  bool integer = false;
  std::optional<int8_patches> patches;  // then x or q are images

  std::size_t out() const { return layers.back()->weight().out_features; }
};

enum class Fill { random, extremes, least, zeros };

// Which weights are zero, and how the rest is kept: one by one, in lines of 16 outputs x 4 inputs, or in tiles of 32 x 64.
enum class Zeros { none, any, lines16, lines32, tiles };

Zeros random_zeros(Random& random) {
  return random.one_in(2) ? Zeros::none : static_cast<Zeros>(1 + random.below(4));
}

void add_layer(Problem& problem, Random& random, std::size_t out, std::size_t in, Fill fill, float input_scale, Zeros zeros) {
  std::vector<std::int8_t> weight(out * in);
  for (auto& w : weight) {
    w = fill == Fill::random     ? random.byte()
        : fill == Fill::extremes ? (random.one_in(2) ? std::int8_t{127} : std::int8_t{-128})
        : fill == Fill::least    ? std::int8_t{-128}
                                 : std::int8_t{0};
  }
  const bool sparse = zeros != Zeros::none;
  const std::size_t one_by_one = random.one_in(2) ? int8_bitmap : int8_steps, seldom = 1 + random.below(12);
  const std::size_t height = zeros == Zeros::lines16 ? 16 : zeros == Zeros::any ? one_by_one : 32;
  if (sparse) {
    const std::uint64_t pattern = random.next();
    const std::size_t outputs = zeros == Zeros::tiles ? 32 : 16, inputs = zeros == Zeros::tiles ? 64 : 4;
    for (std::size_t i = 0; i < weight.size(); ++i) {
      const std::uint64_t block = pattern + i / in / outputs * 100003 + i % in / inputs;
      if (height < 16 ? !random.one_in(seldom) : Random{block}.next() % seldom != 0) weight[i] = 0;
    }
  }
  std::vector<float> scale(out), bias(out);
  const float magnitude = random.one_in(20) ? 1e36f : 0.02f;  // sometimes infinite outputs
  for (auto& s : scale) s = (random.real() + 1.5f) * magnitude;
  for (auto& b : bias) b = random.real();
  const auto at = [&](std::size_t o, std::size_t i) { return weight[o * in + i]; };
  problem.dense.push_back(std::make_shared<Int8Packed>(out, in, at));
  problem.layers.push_back(
      std::make_unique<Int8Packed>(sparse ? Int8Packed::sparse(out, in, height, at) : Int8Packed(out, in, at)));
  problem.sparse = problem.sparse || sparse;
  std::vector<std::int8_t> unpacked(weight.size());
  problem.layers.back()->unpack(unpacked.data());
  if (unpacked != weight) {
    std::printf("a weight of %zu x %zu, height %zu, is another one when it is unpacked\n", out, in, height);
    std::exit(1);
  }
  const float* offsets = random.one_in(4) ? nullptr : bias.data();
  problem.layers.back()->set(scale.data(), offsets, input_scale);
  problem.dense.back()->set(scale.data(), offsets, input_scale);
  problem.activations.push_back(static_cast<int>(random.below(7)));
}

void add_layer(Problem& problem, Random& random, std::size_t out, std::size_t in, Fill fill, float input_scale) {
  add_layer(problem, random, out, in, fill, input_scale, random_zeros(random));
}

std::vector<std::uint8_t> solve(const Problem& problem, const Level<int8_linear_call>& level, int threads,
                                bool dense = false) {
  std::vector<const int8_weight*> weights;
  for (std::size_t i = 0; i < problem.layers.size(); ++i) {
    weights.push_back(dense ? &problem.dense[i]->weight() : &problem.layers[i]->weight());
  }
  const std::size_t size = problem.integer ? 4 : output_bytes(problem.output);
  Guarded<std::uint8_t> y(problem.rows * problem.out() * size);
  bool overflow = false;
  int8_linear_call call{};
  call.weights = weights.data();
  call.activations = problem.activations.data();
  call.layers = weights.size();
  call.rows = problem.rows;
  call.threads = threads;
  if (problem.x) call.x = problem.x->data();
  if (problem.q) call.q = problem.q->data();
  call.output = problem.output;
  call.y = problem.integer ? nullptr : y.data();
  call.output_scale = problem.output_scale;
  if (problem.residual) call.residual = problem.residual->data();
  if (problem.integer) {
    call.product = reinterpret_cast<std::int32_t*>(y.data());
    call.overflow = &overflow;
  }
  if (problem.patches) call.patches = &*problem.patches;
  const int activation = 0;
  if (problem.integer) call.activations = &activation;
  level.run(call);
#if defined(PYCOMPRESS_EMULATED)
  if (emulated::tiles.configured) {
    std::printf("%s leaves its tiles configured\n", level.name);
    std::exit(1);
  }
#endif
  std::vector<std::uint8_t> result(y.data(), y.data() + y.size());
  if (overflow) result.assign(1, 1);  // the product itself is then unspecified
  return result;
}

// NaN has another sign on Arm where it does not come from an input.
std::vector<std::uint8_t> with_one_nan(const Problem& problem, std::vector<std::uint8_t> result) {
  const std::size_t size = problem.integer || problem.output == Output::i8 ? 0 : problem.output == Output::f32 ? 4 : 2;
  for (std::size_t i = 0; size != 0 && i + size <= result.size(); i += size) {
    const unsigned high = result[i + size - 1] << 8 | result[i + size - 2];  // little-endian
    const unsigned low = size == 4 ? result[i] | result[i + 1] : 0u;
    if ((high & 0x7fffu) < 0x7f80u || ((high & 0x7fffu) == 0x7f80u && low == 0)) continue;
    std::memset(result.data() + i, 0xff, size);
  }
  return result;
}

std::string describe(const Problem& problem) {
  const std::size_t in = problem.layers[0]->weight().in_features;
  std::string text = "rows " + std::to_string(problem.rows) + ", in " + std::to_string(in);
  for (std::size_t i = 0; i < problem.layers.size(); ++i) {
    const int8_weight& w = problem.layers[i]->weight();
    text += ", out " + std::to_string(w.out_features) + (w.input_scale == 0 ? " dynamic" : " static") +
            (w.sparse ? " height " + std::to_string(w.sparse->height) + (w.sparse->whole_tiles ? " in tiles" : "") : std::string()) + " activation " +
            std::to_string(problem.activations[i]);
  }
  if (problem.patches) {
    const int8_patches& p = *problem.patches;
    const auto pair = [](std::size_t a, std::size_t b) { return std::to_string(a) + " x " + std::to_string(b); };
    text += ", " + std::to_string(p.images) + " images of " + pair(p.height, p.width) + " x " +
            std::to_string(p.channels) + ", kernel " + pair(p.kernel[0], p.kernel[1]) + ", stride " +
            pair(p.stride[0], p.stride[1]) + ", dilation " + pair(p.dilation[0], p.dilation[1]) + ", padding " +
            pair(p.top, p.left) + ", outputs " + pair(p.out_height, p.out_width);
  }
  return text + (problem.integer ? ", integers" : ", output " + std::to_string(static_cast<int>(problem.output))) +
         (problem.q ? ", int8 rows" : "") + (problem.residual ? ", residual" : "");
}

}  // namespace
}  // namespace pycompress
