// int8_rnn at every level of this CPU, compared bit for bit with the scalar kernel: see int8_levels.cpp and
// tests/test_cross.py. Prints the levels, the number of comparisons and a digest of all outputs, which is the same on
// every architecture; exits 1 on a mismatch. Argument: random problems (300).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "../../csrc/int8_linear/pack.h"
#include "../../csrc/int8_rnn/int8_rnn.h"
#include "../../csrc/isa.h"

namespace pycompress {
#define KERNEL(operation, isa) \
  struct operation##_call;     \
  void operation##_##isa(const operation##_call&);
#include "../../csrc/kernels.def"
#undef KERNEL

namespace {

struct Random {  // splitmix64: the same numbers everywhere
  std::uint64_t state;
  std::uint64_t next() {
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::size_t below(std::size_t n) { return next() % n; }
  float real() {  // in [-1, 1)
    return static_cast<float>(static_cast<std::int32_t>(next() >> 40) - (1 << 23)) * 0x1p-23f;
  }
  std::vector<float> reals(std::size_t n, float magnitude) {
    std::vector<float> values(n);
    for (float& value : values) value = real() * magnitude;
    return values;
  }
};

template <class Call>
struct LevelOf {
  const char* name;
  void (*run)(const Call&);
};
using Level = LevelOf<int8_rnn_call>;

bool runs(Isa isa) {
#if defined(PYCOMPRESS_EMULATED)
  if (isa == Isa::avxvnni || isa == Isa::amx) return cpu_has(Isa::avx512vnni);
#endif
  return cpu_has(isa);
}

template <class Call>
std::vector<LevelOf<Call>> levels() {
  std::vector<LevelOf<Call>> all;
#define KERNEL(operation, isa)                                               \
  if constexpr (std::is_same_v<Call, operation##_call>) {                    \
    if (runs(Isa::isa)) all.push_back({isa_name(Isa::isa), operation##_##isa}); \
  }
#include "../../csrc/kernels.def"
#undef KERNEL
  return all;
}

Int8Packed packed(Random& random, std::size_t out, std::size_t in) {
  std::vector<std::int8_t> weight(out * in);
  for (auto& w : weight) w = static_cast<std::int8_t>(random.next() >> 56);
  std::vector<float> scale(out);
  for (auto& s : scale) s = (random.real() + 1.5f) * 0.01f;
  Int8Packed result(out, in, [&](std::size_t o, std::size_t i) { return weight[o * in + i]; });
  result.set(scale.data(), random.reals(out, 1.0f).data(), 0.0f);
  return result;
}

struct Totals {
  std::vector<Level> all = levels<int8_rnn_call>();
  std::size_t problems = 0, comparisons = 0, mismatches = 0;
  std::uint64_t digest = 0xcbf29ce484222325u;  // FNV-1a

  // y, h and c one after the other.
  static std::vector<float> solve(const Level& level, int8_rnn_call call, std::vector<float> h, std::vector<float> c,
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
    const std::vector<float> expected = solve(all[0], call, h, c, out, 1);
    for (const float value : expected) {
      std::uint32_t bits;
      std::memcpy(&bits, &value, 4);
      digest = (digest ^ (value == value ? bits : 0x7fc00000u)) * 0x100000001b3u;
    }
    ++problems;
    for (const Level& level : all) {
      for (const int threads : {1, 3}) {
        const std::vector<float> got = solve(level, call, h, c, out, threads);
        ++comparisons;
        if (std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0) continue;
        if (++mismatches <= 10) {
          std::printf("%s, %d threads: %s of %zu units, %zu out, %zu steps, batch %zu differs\n", level.name, threads,
                      call.cell == Cell::lstm ? "lstm" : "gru", hidden, out, steps, batch);
        }
      }
    }
  }
};

}  // namespace
}  // namespace pycompress

int main(int argc, char** argv) {
  using namespace pycompress;
  const int count = argc > 1 ? std::atoi(argv[1]) : 300;
  Random random{1};
  Totals totals;
  std::printf("levels");
  for (const Level& level : totals.all) std::printf(" %s", level.name);
  std::printf("\n");
  for (int i = 0; i < count; ++i) {
    const std::size_t hidden = 1 + random.below(i % 10 == 0 ? 200 : 70);
    const std::size_t steps = random.below(5), batch = 1 + random.below(40);
    totals.check(random, hidden, steps, batch);
  }
  std::printf("problems %zu, comparisons %zu, mismatches %zu\n", totals.problems, totals.comparisons, totals.mismatches);
  std::printf("digest %016llx\n", static_cast<unsigned long long>(totals.digest));
  return totals.mismatches == 0 ? 0 : 1;
}
