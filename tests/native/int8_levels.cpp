// int8_linear at every level of this CPU, compared bit for bit with the scalar kernel.
//
// For the levels that the machine of the Python tests may lack: built for Arm and run under qemu, and with
// -DPYCOMPRESS_EMULATED for levels whose instructions were replaced (see tests/test_cross.py). Prints the levels, the
// number of comparisons and a digest of all outputs, which is the same on every architecture; exits 1 on a mismatch.
// Arguments: random problems for each number of rows from 0 to 40 (13; 20 times as many of patches; from 10 on large
// problems come too, from 20 on the largest), seed (1).
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>

#include "int8_problem.h"
#include "patches.h"

namespace pycompress {
namespace {

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

struct Comparison : Totals<int8_linear_call> {
  void check(const Problem& problem) {
    const auto solve_at = [&](const auto& level, int threads) { return solve(problem, level, threads); };
    const auto expected = Totals::check(solve_at, [&] { return describe(problem); });
    for (const std::uint8_t byte : with_one_nan(problem, expected)) note(byte);
    if (problem.sparse && solve(problem, levels[0], 1, true) != expected && ++mismatches <= 10) {
      std::printf("%s differs from its dense twin: %s\n", levels[0].name, describe(problem).c_str());
    }
    if (!problem.patches || is_the_convolution(problem, expected) || ++mismatches > 10) return;
    std::printf("%s is no convolution: %s\n", levels[0].name, describe(problem).c_str());
  }
};

// Every form of sparse weights, from where tiles are used to several blocks of rows; also many groups and few of them.
void sparse_problems(Comparison& totals, Random& random) {
  for (const Zeros zeros : {Zeros::any, Zeros::lines16, Zeros::lines32, Zeros::tiles}) {
    for (const std::size_t rows : {5, 8, 13, 16, 17, 31, 32, 33, 48, 49, 64, 65, 97, 300}) {
      Problem problem;
      problem.rows = rows;
      const std::size_t out = 1 + random.below(rows < 100 ? 130 : 70), in = 1 + random.below(random.one_in(2) ? 3000 : 300);
      problem.integer = random.one_in(3);
      const Fill fill = random.one_in(3) ? Fill::least : Fill::random;
      add_layer(problem, random, out, in, fill, problem.integer || random.one_in(2) ? 0.0f : 0.03f, zeros);
      if (problem.integer) {
        fill_integers(problem, random, in, fill);
      } else {
        fill_rows(problem, random, in);
        if (random.one_in(2)) add_layer(problem, random, 37, out, Fill::random, 0.05f);
        set_output(problem, random);
      }
      totals.check(problem);
    }
  }
  for (const Zeros zeros : {Zeros::any, Zeros::lines16, Zeros::lines32, Zeros::tiles}) {  // sums beyond int32
    for (const std::size_t in : {131008, 131011, 262017}) {
      Problem problem;
      problem.rows = 17;
      problem.integer = in % 2 == 0;
      add_layer(problem, random, 18, in, Fill::least, problem.integer ? 0.0f : 0.03f, zeros);
      if (problem.integer) {
        fill_integers(problem, random, in, Fill::least);
      } else {
        fill_rows(problem, random, in);
        set_output(problem, random);
      }
      totals.check(problem);
    }
  }
}

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
  for (int i = 0; i < 20 * each; ++i) totals.check(random_patches(random));
  if (each >= 10) {
    sparse_problems(totals, random);
    large_problems(totals, random);
    for (const Problem& problem : large_patches(random)) totals.check(problem);
  }
  if (each >= 20) {  // several chunks of panels and of rows on the fastest levels too
    totals.check(large_problem(random, 70, 1500, 1030, false, Fill::random));
    totals.check(large_problem(random, 161, 40, 30010, false, Fill::random));
  }
  return totals.print();
}
