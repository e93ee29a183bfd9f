// binary_linear at every level of this CPU, compared bit for bit with the scalar kernel: see int8_levels.cpp and
// tests/test_cross.py. Prints the levels, the number of comparisons and a digest of all outputs, which is the same on
// every architecture; exits 1 on a mismatch. Argument: random problems (300).
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "../../csrc/binary_linear/binary_linear.h"
#include "../../csrc/binary_linear/pack.h"
#include "levels.h"

namespace pycompress {
namespace {

struct Comparison : Totals<binary_linear_call> {
  void check(Random& random, std::size_t rows, std::size_t out, std::size_t in) {
    std::vector<std::int8_t> weight(out * in);
    for (auto& w : weight) w = random.one_in(2) ? 1 : -1;
    const std::vector<float> scale = random.reals(out, 0.1f), bias = random.reals(out, 1.0f);
    const BinaryPacked packed(out, in, weight.data(), scale.data(), random.one_in(3) ? nullptr : bias.data());
    Guarded<float> x(rows * in);
    const std::vector<float> values = random.reals(rows * in, 3.0f);
    std::copy(values.begin(), values.end(), x.data());
    for (std::size_t i = 0; i < rows * in; ++i) {
      if (random.one_in(20)) x.data()[i] = random.one_in(2) ? 0.0f : -0.0f;
    }
    if (rows * in != 0 && random.one_in(6)) x.data()[random.below(rows * in)] = std::numeric_limits<float>::quiet_NaN();
    binary_linear_call call{};
    call.weight = &packed.weight();
    call.rows = rows;
    call.activation = static_cast<int>(random.below(7));
    call.x = x.data();
    const auto solve_at = [&](const auto& level, int threads) {
      Guarded<float> y(rows * out);
      binary_linear_call own = call;
      own.threads = threads;
      own.y = y.data();
      level.run(own);
      return std::vector<float>(y.data(), y.data() + y.size());
    };
    const auto describe = [&] {
      return std::to_string(rows) + " rows, " + std::to_string(out) + " x " + std::to_string(in) + ", activation " + std::to_string(call.activation);
    };
    for (const float value : Totals::check(solve_at, describe)) note_float(value);
  }
};

}  // namespace
}  // namespace pycompress

int main(int argc, char** argv) {
  using namespace pycompress;
  const int count = argc > 1 ? std::atoi(argv[1]) : 300;
  Random random{1};
  Comparison totals;
  totals.print_levels();
  for (int i = 0; i < count; ++i) {
    const std::size_t most = i % 10 == 0 ? 5000 : 200;
    const std::size_t rows = random.below(i % 10 == 0 ? 60 : 20), out = random.below(90), in = random.below(most);
    totals.check(random, rows, out, in);
  }
  return totals.print();
}
