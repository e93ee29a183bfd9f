// sparse_linear at every level of this CPU, unstructured and in blocks.
//
// Where all numbers are small integers the sums are exact, so that every level has the bits of the scalar kernel on
// every architecture; where they are not, levels with fused multiply-adds have the bits of one chain of them over the
// stored weights. Prints and arguments: as int8_levels.cpp.
#include <cmath>
#include <cstdio>
#include <memory>

#include "../../csrc/sparse_linear/pack.h"
#include "levels.h"

namespace pycompress {
namespace {

struct Problem {
  std::size_t rows, in, out, height;
  bool integers;
  int activation;
  std::vector<float> weight, bias, x;
};

Problem random_problem(Random& random, std::size_t rows, bool integers) {
  static const std::size_t sizes[] = {0,  1,  2,  3,  4,  5,   7,   8,   9,   15,  16,  17,
                                      31, 33, 63, 64, 65, 127, 129, 255, 256, 257, 300, 515};
  static const std::size_t heights[] = {1, 4, 8, 16};
  const auto size = [&] { return sizes[random.below(sizeof sizes / sizeof *sizes)]; };
  Problem p{rows, size(), size(), heights[random.below(4)], integers, static_cast<int>(random.below(7)), {}, {}, {}};
  if (!integers) p.activation = 0;
  p.weight = random.reals(p.out * p.in, 9.0f);
  p.bias = random.reals(p.out, 9.0f);
  p.x = random.reals(p.rows * p.in, 9.0f);
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

struct Comparison : Totals<sparse_linear_call> {
  void check(const Problem& p) {
    SparsePacked packed(p.weight.data(), p.bias.data(), p.out, p.in, p.height);
    packed.add_steps(p.weight.data());
    const auto solve = [&](const auto& level, int threads) {
      Guarded<float> x(p.x.size()), y(p.rows * p.out);
      std::copy(p.x.begin(), p.x.end(), x.data());
      const sparse_weight* weight = &packed.weight();
      level.run({&weight, &p.activation, 1, p.rows, threads, x.data(), y.data()});
      return std::vector<float>(y.data(), y.data() + y.size());
    };
    if (p.integers) {
      for (const float value : Totals::check(solve, [&] { return describe(p); })) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        note(bits);
      }
      return;
    }
    ++problems;
    const std::vector<float> expected = chain(p);
    for (std::size_t i = 1; i < levels.size(); ++i) {
      ++comparisons;
      const auto got = solve(levels[i], 1);
      if (std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0 || ++mismatches > 10) continue;
      std::printf("%s is no chain of fused multiply-adds: %s\n", levels[i].name, describe(p).c_str());
    }
  }

  static std::vector<float> chain(const Problem& p) {
    std::vector<float> y(p.rows * p.out);
    for (std::size_t r = 0; r < p.rows; ++r) {
      for (std::size_t o = 0; o < p.out; ++o) {
        float sum = 0.0f;
        for (std::size_t i = 0; i < p.in; ++i) {
          const float w = p.weight[o * p.in + i];
          if (w != 0) sum = std::fma(w, p.x[r * p.in + i], sum);
        }
        y[r * p.out + o] = sum + p.bias[o];
      }
    }
    return y;
  }

  static std::string describe(const Problem& p) {
    return std::to_string(p.rows) + " rows, " + std::to_string(p.in) + " -> " + std::to_string(p.out) + ", height " +
           std::to_string(p.height) + ", activation " + std::to_string(p.activation);
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
  for (std::size_t rows = 0; rows <= 40; ++rows) {
    for (int i = 0; i < each; ++i) totals.check(random_problem(random, rows + 33 * (i % 3), i % 4 != 0));
  }
  return totals.print();
}
