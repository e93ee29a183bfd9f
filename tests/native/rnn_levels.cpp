// int8_rnn at every level of this CPU, compared bit for bit with the scalar kernel: see int8_levels.cpp and
// tests/test_cross.py. Prints the levels, the number of comparisons and a digest of all outputs, which is the same on
// every architecture; exits 1 on a mismatch. Argument: random problems (300).
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "../../csrc/int8_linear/pack.h"
#include "../../csrc/int8_rnn/int8_rnn.h"
#include "levels.h"

namespace pycompress {
namespace {

Int8Packed packed(Random& random, std::size_t out, std::size_t in) {
  std::vector<std::int8_t> weight(out * in);
  for (auto& w : weight) w = static_cast<std::int8_t>(random.next() >> 56);
  std::vector<float> scale(out);
  for (auto& s : scale) s = (random.real() + 1.5f) * 0.01f;
  Int8Packed result(out, in, [&](std::size_t o, std::size_t i) { return weight[o * in + i]; });
  result.set(scale.data(), random.reals(out, 1.0f).data(), 0.0f);
  return result;
}

struct Comparison : Totals<int8_rnn_call> {
  // y, h and c one after the other.
  static std::vector<float> solve(const Level<int8_rnn_call>& level, int8_rnn_call call, std::vector<float> h, std::vector<float> c,
                                  std::size_t out, int threads) {
    const std::size_t rows = call.starts[call.steps];
    call.y_stride = out + 3;
    std::vector<float> y(rows * call.y_stride + 1, 7.0f);  // what lies between rows must stay
    call.threads = threads;
    call.h = h.data();
    call.c = c.data();
    call.y = y.data();
    level.run(call);
    y.insert(y.end(), h.begin(), h.end());
    y.insert(y.end(), c.begin(), c.end());
    return y;
  }

  void check(Random& random, std::size_t hidden, std::size_t steps, std::size_t batch) {
    int8_rnn_call call{};
    call.cell = random.below(2) ? Cell::lstm : Cell::gru;
    const bool projected = call.cell == Cell::lstm && random.below(3) == 0;
    const std::size_t gates = gate_count(call.cell), out = projected ? 1 + random.below(hidden) : hidden;
    const Int8Packed recurrent = packed(random, (hidden + 31) / 32 * 32 * gates, out), projection = packed(random, out, hidden);
    std::vector<std::size_t> starts{0};
    for (std::size_t t = 0, rows = batch; t < steps; ++t) {
      starts.push_back(starts.back() + rows);
      if (rows > 0 && random.below(3) == 0) rows -= random.below(rows);
    }
    std::vector<float> input = random.reals(starts.back() * gates * hidden, 3.0f);
    if (!input.empty() && random.below(6) == 0) input[random.below(input.size())] = std::numeric_limits<float>::quiet_NaN();
    call.hidden = hidden;
    call.recurrent = &recurrent.weight();
    call.projection = projected ? &projection.weight() : nullptr;
    call.steps = steps;
    call.starts = starts.data();
    call.backwards = false;
    call.input = input.data();
    const std::vector<float> h = random.reals(batch * out, 1.0f);
    const std::vector<float> c = random.reals(call.cell == Cell::lstm ? batch * hidden : 0, 2.0f);
    const auto solve_at = [&](const auto& level, int threads) { return solve(level, call, h, c, out, threads); };
    const auto describe = [&] {
      return std::string(call.cell == Cell::lstm ? "lstm" : "gru") + " of " + std::to_string(hidden) + " units, " +
             std::to_string(out) + " out, " + std::to_string(steps) + " steps, batch " + std::to_string(batch);
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
    const std::size_t hidden = 1 + random.below(i % 10 == 0 ? 200 : 70);
    const std::size_t steps = random.below(5), batch = 1 + random.below(40);
    totals.check(random, hidden, steps, batch);
  }
  return totals.print();
}
