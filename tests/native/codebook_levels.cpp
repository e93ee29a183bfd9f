// codebook_linear at every level of this CPU, compared bit for bit with the scalar kernel: see int8_levels.cpp and
// tests/test_cross.py. Prints the levels, the number of comparisons and a digest of all outputs, which is the same on
// every architecture; exits 1 on a mismatch. Argument: random problems (300).
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "../../csrc/codebook_linear/codebook_linear.h"
#include "../../csrc/codebook_linear/pack.h"
#include "levels.h"

namespace pycompress {
namespace {

struct Comparison : Totals<codebook_linear_call> {
  void check(Random& random, std::size_t rows, std::size_t out, std::size_t in) {
    codebook_parts parts{};
    parts.out_features = out;
    parts.in_features = in;
    parts.bits = 1 << random.below(3);
    parts.group = std::size_t{32} << random.below(3);
    const std::size_t groups = (in + parts.group - 1) / parts.group, numbers = std::size_t{1} << parts.bits;
    std::vector<std::int8_t> table(numbers), codes(out * in);
    for (auto& number : table) number = random.one_in(9) ? (random.one_in(2) ? 127 : -127) : std::max<std::int8_t>(random.byte(), -127);
    if (parts.bits == 1) table = {-1, 1};
    for (auto& code : codes) code = static_cast<std::int8_t>(random.below(numbers));
    std::vector<std::uint16_t> scale(out * groups);  // fp16: normal, subnormal and zero, of both signs
    for (auto& s : scale) {
      const auto bits = static_cast<std::uint16_t>(random.next() >> 48 & 0x83ff);
      s = static_cast<std::uint16_t>(bits | (random.one_in(9) ? 0 : 0x2000 + random.below(4) * 0x400));
    }
    const std::vector<float> channel_scale = random.reals(out, 0.1f), bias = random.reals(out, 1.0f);
    parts.codes = codes.data();
    parts.table = table.data();
    parts.scale = parts.bits == 1 ? nullptr : scale.data();
    parts.channel_scale = channel_scale.data();
    parts.bias = random.one_in(3) ? nullptr : bias.data();
    parts.input_scale = random.one_in(3) ? 0.02f : 0.0f;
    const CodebookPacked packed(parts);
    Guarded<float> x(rows * in);
    const std::vector<float> values = random.reals(rows * in, 3.0f);
    std::copy(values.begin(), values.end(), x.data());
    if (rows * in != 0 && random.one_in(6)) x.data()[random.below(rows * in)] = std::numeric_limits<float>::quiet_NaN();
    codebook_linear_call call{};
    call.weight = &packed.weight();
    call.rows = rows;
    call.activation = static_cast<int>(random.below(7));
    call.x = x.data();
    const auto solve_at = [&](const auto& level, int threads) {
      Guarded<float> y(rows * out);
      codebook_linear_call own = call;
      own.threads = threads;
      own.y = y.data();
      level.run(own);
      return std::vector<float>(y.data(), y.data() + y.size());
    };
    const auto describe = [&] {
      return std::to_string(parts.bits) + " bits, group " + std::to_string(parts.group) + ", " + std::to_string(rows) + " rows, " +
             std::to_string(out) + " x " + std::to_string(in) + ", activation " + std::to_string(call.activation);
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
    const std::size_t most = i % 10 == 0 ? 700 : 200;
    const std::size_t rows = random.below(i % 10 == 0 ? 120 : 20), out = random.below(90), in = random.below(most);
    totals.check(random, rows, out, in);
  }
  return totals.print();
}
