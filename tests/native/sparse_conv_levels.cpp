// sparse_conv at every level of this CPU: strides, dilations, paddings, groups, unstructured and in blocks.
//
// Where all numbers are small integers the sums are exact, so that every level has the bits of the scalar kernel on
// every architecture; where they are not, levels with fused multiply-adds have the bits of one chain of them over the
// stored weights. Prints and arguments: as int8_levels.cpp.
#include <cmath>
#include <cstdio>
#include <memory>

#include "../../csrc/sparse_conv/sparse_conv.h"
#include "../../csrc/sparse_linear/pack.h"
#include "levels.h"

namespace pycompress {
namespace {

struct Problem {
  sparse_conv_weight sizes;
  std::size_t images, in[2], out[2], height;
  bool integers;
  int activation;
  std::vector<float> weight, bias, x;

  std::size_t inputs() const { return sizes.channels / sizes.groups * sizes.kernel[0] * sizes.kernel[1]; }
  std::size_t pixels() const { return out[0] * out[1]; }
};

Problem random_problem(Random& random, bool integers) {
  static const std::size_t heights[] = {1, 4, 8, 16};
  Problem p{};
  p.images = random.below(4);
  p.sizes.groups = random.one_in(3) ? 1 + random.below(3) : 1;
  const bool pointwise = random.one_in(3);
  p.sizes.channels = (1 + random.below(pointwise ? 300 : 40)) * p.sizes.groups;
  p.sizes.outputs = (1 + random.below(random.one_in(8) ? 300 : 40)) * p.sizes.groups;
  p.height = heights[random.below(4)];
  for (int i = 0; i < 2; ++i) {
    p.sizes.kernel[i] = pointwise ? 1 : 1 + random.below(5);
    p.sizes.stride[i] = random.one_in(2) ? 1 : 1 + random.below(3);
    p.sizes.dilation[i] = random.one_in(2) ? 1 : 1 + random.below(3);
    p.sizes.padding[2 * i] = random.one_in(3) ? random.below(4) : 0;
    p.sizes.padding[2 * i + 1] = random.one_in(3) ? random.below(4) : 0;
    const std::size_t reach = (p.sizes.kernel[i] - 1) * p.sizes.dilation[i], pads = p.sizes.padding[2 * i] + p.sizes.padding[2 * i + 1];
    p.in[i] = 1 + random.below(24) + (reach > pads ? reach - pads : 0);
    p.out[i] = (p.in[i] + pads - reach - 1) / p.sizes.stride[i] + 1;
  }
  p.integers = integers;
  p.activation = integers ? static_cast<int>(random.below(7)) : 0;
  p.weight = random.reals(p.sizes.outputs * p.inputs(), 9.0f);
  p.bias = random.reals(p.sizes.outputs, 9.0f);
  p.x = random.reals(p.images * p.sizes.channels * p.in[0] * p.in[1], 9.0f);
  const std::size_t kept = 1 + random.below(100);  // per cent
  for (float& value : p.weight) value = random.below(100) < kept ? value : 0.0f;
  if (integers) {
    for (auto* values : {&p.weight, &p.bias, &p.x}) {
      for (float& value : *values) value = std::rint(value);
    }
  }
  for (float& value : p.bias) value += 0.0f;  // no -0, as in packed weights
  return p;
}

struct Comparison : Totals<sparse_conv_call> {
  void check(const Problem& p) {
    std::vector<std::unique_ptr<SparsePacked>> packed;
    std::vector<const sparse_weight*> weights;
    const std::size_t outputs = p.sizes.outputs / p.sizes.groups;
    for (std::size_t g = 0; g < p.sizes.groups; ++g) {
      packed.push_back(std::make_unique<SparsePacked>(p.weight.data() + g * outputs * p.inputs(), p.bias.data() + g * outputs,
                                                      outputs, p.inputs(), p.height));
      weights.push_back(&packed.back()->weight());
    }
    sparse_conv_weight weight = p.sizes;
    weight.weights = weights.data();
    const auto solve = [&](const auto& level, int threads) {
      Guarded<float> x(p.x.size()), y(p.images * p.sizes.outputs * p.pixels());
      std::copy(p.x.begin(), p.x.end(), x.data());
      level.run({&weight, p.images, p.in[0], p.in[1], threads, p.activation, x.data(), y.data()});
      return std::vector<float>(y.data(), y.data() + y.size());
    };
    if (p.integers) {
      for (const float value : Totals::check(solve, [&] { return describe(p); })) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        note(bits);
      }
    } else {
      ++problems;
    }
    if (p.activation != 0) return;
    const std::vector<float> expected = chain(p);
    for (std::size_t i = p.integers ? 0 : 1; i < levels.size(); ++i) {
      ++comparisons;
      const auto got = solve(levels[i], 1);
      if (std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0 || ++mismatches > 10) continue;
      std::printf("%s is no chain of fused multiply-adds: %s\n", levels[i].name, describe(p).c_str());
    }
  }

  static std::vector<float> chain(const Problem& p) {
    const sparse_conv_weight& s = p.sizes;
    std::vector<float> y;
    for (std::size_t n = 0; n < p.images; ++n) {
      for (std::size_t o = 0; o < s.outputs; ++o) {
        for (std::size_t pixel = 0; pixel < p.pixels(); ++pixel) y.push_back(one(p, n, o, pixel / p.out[1], pixel % p.out[1]));
      }
    }
    return y;
  }

  static float one(const Problem& p, std::size_t n, std::size_t o, std::size_t i, std::size_t j) {
    const sparse_conv_weight& s = p.sizes;
    const std::size_t channels = s.channels / s.groups, first = o / (s.outputs / s.groups) * channels;
    float sum = 0.0f;
    const float* w = p.weight.data() + o * p.inputs();
    for (std::size_t c = 0; c < channels; ++c) {
      for (std::size_t k = 0; k < s.kernel[0]; ++k) {
        for (std::size_t l = 0; l < s.kernel[1]; ++l, ++w) {
          const std::size_t row = i * s.stride[0] + k * s.dilation[0] - s.padding[0];  // wraps where it is padding
          const std::size_t column = j * s.stride[1] + l * s.dilation[1] - s.padding[2];
          const bool inside = row < p.in[0] && column < p.in[1];
          const float x = inside ? p.x[((n * s.channels + first + c) * p.in[0] + row) * p.in[1] + column] : 0.0f;
          if (*w != 0) sum = std::fma(*w, x, sum);
        }
      }
    }
    return sum + p.bias[o];
  }

  static std::string describe(const Problem& p) {
    const sparse_conv_weight& s = p.sizes;
    const auto pair = [](const std::size_t* two) { return std::to_string(two[0]) + " x " + std::to_string(two[1]); };
    return std::to_string(p.images) + " images " + pair(p.in) + ", " + std::to_string(s.channels) + " -> " +
           std::to_string(s.outputs) + ", " + std::to_string(s.groups) + " groups, kernel " + pair(s.kernel) +
           ", stride " + pair(s.stride) + ", dilation " + pair(s.dilation) + ", padding " + pair(s.padding) + " " +
           pair(s.padding + 2) + ", height " + std::to_string(p.height) + ", activation " + std::to_string(p.activation);
  }
};

}  // namespace
}  // namespace pycompress

int main(int argc, char** argv) {
  using namespace pycompress;
  const int each = argc > 1 ? std::atoi(argv[1]) : 13;
  Random random{argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1};
  Comparison totals;
  totals.print_levels();
  for (int i = 0; i < each; ++i) totals.check(random_problem(random, i % 4 != 0));
  return totals.print();
}
