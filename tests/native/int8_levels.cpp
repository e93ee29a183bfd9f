// int8_linear at every level of this CPU, compared bit for bit with the scalar kernel.
//
// For the levels that the machine of the Python tests may lack: built for Arm and run under qemu, and with
// -DPYCOMPRESS_EMULATED for levels whose instructions were replaced (see tests/test_cross.py). Prints the levels, the
// number of comparisons and a digest of all outputs, which is the same on every architecture; exits 1 on a mismatch.
// Arguments: random problems for each number of rows from 0 to 40 (13; from 10 on large problems come too, from 20 on
// the largest), seed (1).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/int8_linear/pack.h"
#include "levels.h"

namespace pycompress {
namespace {

struct Problem {
  std::vector<std::unique_ptr<Int8Packed>> layers;
  std::vector<int> activations;
  std::size_t rows = 0;
  std::unique_ptr<Guarded<float>> x, residual;
  std::unique_ptr<Guarded<std::int8_t>> q;
  Output output = Output::f32;
  float output_scale = 0;
  bool integer = false;

  std::size_t out() const { return layers.back()->weight().out_features; }
};

enum class Fill { random, extremes, least, zeros };

void add_layer(Problem& problem, Random& random, std::size_t out, std::size_t in, Fill fill, float input_scale) {
  std::vector<std::int8_t> weight(out * in);
  for (auto& w : weight) {
    w = fill == Fill::random     ? random.byte()
        : fill == Fill::extremes ? (random.one_in(2) ? std::int8_t{127} : std::int8_t{-128})
        : fill == Fill::least    ? std::int8_t{-128}
                                 : std::int8_t{0};
  }
  std::vector<float> scale(out), bias(out);
  const float magnitude = random.one_in(20) ? 1e36f : 0.02f;  // sometimes infinite outputs
  for (auto& s : scale) s = (random.real() + 1.5f) * magnitude;
  for (auto& b : bias) b = random.real();
  problem.layers.push_back(
      std::make_unique<Int8Packed>(out, in, [&](std::size_t o, std::size_t i) { return weight[o * in + i]; }));
  problem.layers.back()->set(scale.data(), random.one_in(4) ? nullptr : bias.data(), input_scale);
  problem.activations.push_back(static_cast<int>(random.below(6)));
}

void fill_rows(Problem& problem, Random& random, std::size_t in) {
  problem.x = std::make_unique<Guarded<float>>(problem.rows * in);
  float* x = problem.x->data();
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (std::size_t r = 0; r < problem.rows; ++r) {
    const std::size_t kind = random.below(24);
    const float magnitude = kind == 0 ? 0.0f : kind == 1 ? 0x1p-110f : kind == 2 ? 0x1p100f : 3.0f;
    for (std::size_t i = 0; i < in; ++i) x[r * in + i] = random.real() * magnitude;
    if (in == 0) continue;
    if (kind == 3) x[r * in + random.below(in)] = nan;
    if (kind == 4) x[r * in + random.below(in)] = -infinity;
    if (kind == 5) x[r * in + random.below(in)] = 1e4f;
  }
}

void fill_integers(Problem& problem, Random& random, std::size_t in, Fill fill) {
  problem.q = std::make_unique<Guarded<std::int8_t>>(problem.rows * in);
  for (std::size_t i = 0; i < problem.q->size(); ++i) {
    problem.q->data()[i] = fill == Fill::least ? std::int8_t{-128} : random.byte();
  }
}

void set_output(Problem& problem, Random& random) {
  problem.output = static_cast<Output>(random.below(3));
  problem.output_scale = problem.output == Output::i8 ? 0.05f : 0.0f;
  if (!random.one_in(3)) return;
  problem.residual = std::make_unique<Guarded<float>>(problem.rows * problem.out());
  for (std::size_t i = 0; i < problem.residual->size(); ++i) problem.residual->data()[i] = random.real() * 4;
}

Problem random_problem(Random& random, std::size_t rows) {
  static const std::size_t sizes[] = {1,  2,  3,  4,  5,  7,  8,  15, 16,  17,  25,  27,  31,  32,  33,
                                      47, 48, 49, 63, 64, 65, 67, 96, 127, 128, 129, 160, 191, 193, 260};
  const auto size = [&] { return sizes[random.below(sizeof sizes / sizeof *sizes)]; };
  const auto input_scale = [&] { return random.one_in(2) ? 0.0f : 0.03f; };
  Problem problem;
  problem.rows = rows;
  const std::size_t in = random.one_in(40) ? 0 : size(), kind = random.below(8);
  const Fill fill = random.one_in(8) ? static_cast<Fill>(random.below(4)) : Fill::random;
  if (kind == 0) {  // integers
    problem.integer = true;
    add_layer(problem, random, size(), in, fill, 0.0f);
    fill_integers(problem, random, in, fill);
    return problem;
  }
  const std::size_t layers = kind <= 3 ? 2 + random.below(4) : 1;
  const bool int8_rows = random.one_in(4);
  std::size_t width = in;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const std::size_t out = size();
    add_layer(problem, random, out, width, fill, layer == 0 && int8_rows ? 0.02f : input_scale());
    width = out;
  }
  if (int8_rows) {
    fill_integers(problem, random, in, Fill::random);
  } else {
    fill_rows(problem, random, in);
  }
  set_output(problem, random);
  return problem;
}

// One layer of given sizes, large enough for several threads or for sums beyond int32.
Problem large_problem(Random& random, std::size_t rows, std::size_t out, std::size_t in, bool integer, Fill fill) {
  Problem problem;
  problem.rows = rows;
  problem.integer = integer;
  add_layer(problem, random, out, in, fill, random.one_in(2) && !integer ? 0.03f : 0.0f);
  if (integer) {
    fill_integers(problem, random, in, fill);
  } else {
    fill_rows(problem, random, in);
    if (rows < 4000) set_output(problem, random);
  }
  return problem;
}

// A chain of more rows than a level takes at a time.
Problem long_chain(Random& random, std::size_t rows, float input_scale) {
  Problem problem;
  problem.rows = rows;
  std::size_t width = 3;
  for (const std::size_t out : {300, 2, 301, 5}) {
    add_layer(problem, random, out, width, Fill::random, input_scale);
    width = out;
  }
  fill_rows(problem, random, 3);
  set_output(problem, random);
  return problem;
}

std::vector<std::uint8_t> solve(const Problem& problem, const Level<int8_linear_call>& level, int threads) {
  std::vector<const int8_weight*> weights;
  for (const auto& layer : problem.layers) weights.push_back(&layer->weight());
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
    text += ", out " + std::to_string(w.out_features) + (w.input_scale == 0 ? " dynamic" : " static") + " activation " +
            std::to_string(problem.activations[i]);
  }
  return text + (problem.integer ? ", integers" : ", output " + std::to_string(static_cast<int>(problem.output))) +
         (problem.q ? ", int8 rows" : "") + (problem.residual ? ", residual" : "");
}

struct Comparison : Totals<int8_linear_call> {
  void check(const Problem& problem) {
    const auto solve_at = [&](const Level<int8_linear_call>& level, int threads) { return solve(problem, level, threads); };
    const auto expected = Totals::check(solve_at, [&] { return describe(problem); });
    for (const std::uint8_t byte : with_one_nan(problem, expected)) note(byte);
  }
};

// What needs several threads, sums beyond int32, or memory beyond a cache.
void large_problems(Comparison& totals, Random& random) {
  for (const std::size_t rows : {1, 2, 5, 33, 70}) {  // several chunks of panels and of rows
    totals.check(large_problem(random, rows, 260, 515, false, Fill::random));
    totals.check(large_problem(random, rows, 40, 1030, false, Fill::random));
    totals.check(large_problem(random, rows, 129, 320, true, Fill::random));
  }
  totals.check(large_problem(random, 1101, 40, 130, false, Fill::random));
  totals.check(large_problem(random, 100, 33, 1030, true, Fill::random));
  totals.check(large_problem(random, 545, 3, 1030, false, Fill::random));
  totals.check(large_problem(random, 4100, 272, 5, false, Fill::random));  // a result that is stored past the caches
  totals.check(long_chain(random, 2200, 0.0f));
  totals.check(long_chain(random, 1300, 0.03f));
  for (const std::size_t in : {131007, 131008, 131009, 131071, 131072, 131137, 262017}) {
    for (const bool integer : {false, true}) {
      totals.check(large_problem(random, 6, 2, in, integer, Fill::least));
      totals.check(large_problem(random, 7, 9, in, integer, Fill::extremes));
    }
  }
  totals.check(large_problem(random, 19, 3, 131070, false, Fill::least));
}

}  // namespace
}  // namespace pycompress

int main(int argc, char** argv) {
  using namespace pycompress;
  const int each = argc > 1 ? std::atoi(argv[1]) : 13;
  Random random{argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1};
  Comparison totals;
  totals.print_levels();
  for (std::size_t rows = 0; rows <= 40; ++rows) {
    for (int i = 0; i < each; ++i) totals.check(random_problem(random, rows));
  }
  if (each >= 10) large_problems(totals, random);
  if (each >= 20) {  // several chunks of panels and of rows on the fastest levels too
    totals.check(large_problem(random, 70, 1500, 1030, false, Fill::random));
    totals.check(large_problem(random, 161, 40, 30010, false, Fill::random));
  }
  return totals.print();
}
