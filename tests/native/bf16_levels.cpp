// bf16_linear at every level of this CPU.
//
// Where all numbers are small integers the sums are exact, so that every level has the bits of the scalar kernel on
// every architecture, tiles too; where they are not, levels with fused multiply-adds have the bits of one chain of them
// over all weights, AMX is within the bound of bf16_linear.h, and no level changes a row when its batch is cut. Prints and
// arguments: as int8_levels.cpp.
#include <cmath>
#include <cstdio>
#include <memory>

#include "../../csrc/bf16_linear/pack.h"
#include "levels.h"

namespace pycompress {
namespace {

struct Problem {
  std::size_t rows, in, out;
  bool integers;
  int activation;
  std::vector<float> weight, bias, x;
};

float rounded(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = std::fabs(value) < 0x1p-126f ? 0 : (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

Problem random_problem(Random& random, std::size_t rows, bool integers) {
  static const std::size_t sizes[] = {0,  1,  2,  3,  4,  5,  7,  8,   9,   15,  16,  17,  31,
                                      32, 33, 63, 64, 65, 95, 97, 127, 129, 257, 515, 600, 1030};
  const auto size = [&] { return sizes[random.below(sizeof sizes / sizeof *sizes)]; };
  Problem p{rows, size(), std::min<std::size_t>(size(), 300), integers, static_cast<int>(random.below(7)), {}, {}, {}};
  if (!integers) p.activation = 0;
  p.weight = random.reals(p.out * p.in, 9.0f);
  p.bias = random.reals(p.out, 9.0f);
  p.x = random.reals(p.rows * p.in, 9.0f);
  const std::size_t kept = 1 + random.below(100);  // per cent
  for (float& value : p.weight) value = random.below(100) < kept ? rounded(value) : 0.0f;
  if (integers) {
    for (auto* values : {&p.weight, &p.bias, &p.x}) {
      for (float& value : *values) value = std::rint(value);
    }
  }
  for (float& value : p.bias) value += 0.0f;  // no -0, as in packed weights
  return p;
}

std::vector<float> solve(const Problem& p, const Bf16Packed& packed, const Level<bf16_linear_call>& level, int threads,
                         std::size_t first, std::size_t rows) {
  Guarded<float> x(rows * p.in), y(rows * p.out);
  std::copy_n(p.x.data() + first * p.in, rows * p.in, x.data());
  level.run({&packed.weight(), rows, threads, p.activation, x.data(), y.data()});
#if defined(PYCOMPRESS_EMULATED)
  if (emulated::tiles.configured) {
    std::printf("%s leaves its tiles configured\n", level.name);
    std::exit(1);
  }
#endif
  return std::vector<float>(y.data(), y.data() + y.size());
}

struct Comparison : Totals<bf16_linear_call> {
  void check(const Problem& p) {
    const Bf16Packed packed(p.weight.data(), p.bias.data(), p.out, p.in);
    std::vector<float> unpacked(p.weight.size());
    packed.unpack(unpacked.data());
    if (unpacked != p.weight) wrong("the packed weight is another one", p);
    if (p.integers) {
      const auto at = [&](const auto& level, int threads) { return solve(p, packed, level, threads, 0, p.rows); };
      for (const float value : Totals::check(at, [&] { return describe(p); })) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        note(bits);
      }
      return;
    }
    ++problems;
    std::vector<float> expected(p.rows * p.out);
    std::vector<double> sum(p.rows * p.out), bound(p.rows * p.out);
    for (std::size_t r = 0; r < p.rows; ++r) {
      for (std::size_t o = 0; o < p.out; ++o) {
        float chain = 0.0f;
        double exact = 0, total = std::fabs(p.bias[o]);
        for (std::size_t i = 0; i < p.in; ++i) {
          const float w = p.weight[o * p.in + i], x = rounded(p.x[r * p.in + i]);
          chain = std::fma(w, x, chain);
          exact += static_cast<double>(w) * x;
          total += std::fabs(static_cast<double>(w) * x);
        }
        expected[r * p.out + o] = chain + p.bias[o];
        sum[r * p.out + o] = exact + p.bias[o];
        bound[r * p.out + o] = 2 * static_cast<double>(p.in + 1) * (0x1p-24 * total + 0x1p-126);
      }
    }
    for (std::size_t i = 0; i < levels.size(); ++i) {
      const auto got = solve(p, packed, levels[i], 1, 0, p.rows);
      const bool chains = levels[i].name != std::string("scalar") && levels[i].name != std::string("amx");
      ++comparisons;
      if (chains && std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) != 0) {
        wrong(std::string(levels[i].name) + " is no chain of fused multiply-adds", p);
      }
      for (std::size_t k = 0; k < got.size(); ++k) {
        if (std::fabs(got[k] - sum[k]) <= bound[k]) continue;
        wrong(std::string(levels[i].name) + " is too far from the exact sum", p);
        break;
      }
      const std::size_t cut = p.rows / 3;
      auto parts = solve(p, packed, levels[i], 3, 0, cut);
      const auto rest = solve(p, packed, levels[i], 1, cut, p.rows - cut);
      parts.insert(parts.end(), rest.begin(), rest.end());
      if (std::memcmp(got.data(), parts.data(), got.size() * sizeof(float)) != 0) {
        wrong(std::string(levels[i].name) + " changes with the batch", p);
      }
    }
  }

  void wrong(const std::string& what, const Problem& p) {
    if (++mismatches <= 10) std::printf("%s: %s\n", what.c_str(), describe(p).c_str());
  }

  static std::string describe(const Problem& p) {
    return std::to_string(p.rows) + " rows, " + std::to_string(p.in) + " -> " + std::to_string(p.out) + ", activation " +
           std::to_string(p.activation);
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
  for (const bool integers : {true, false}) {  // more rows than are multiplied at a time
    Problem large = random_problem(random, 0, integers);
    large.rows = 530;
    large.in = 70;
    large.out = 45;
    large.weight.assign(large.in * large.out, 0.0f);
    for (std::size_t i = 0; i < large.weight.size(); i += 3) large.weight[i] = static_cast<float>(random.below(9)) - 4.0f;
    large.bias.assign(large.out, 1.0f);
    large.x.assign(large.rows * large.in, 0.0f);
    for (float& value : large.x) value = integers ? static_cast<float>(random.below(9)) - 4.0f : random.real();
    totals.check(large);
  }
  return totals.print();
}
