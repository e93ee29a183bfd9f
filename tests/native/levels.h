// What the programs of this folder share: random numbers, guarded memory, the levels of this CPU and their comparison.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

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
  bool one_in(std::size_t n) { return below(n) == 0; }
  float real() {  // in [-1, 1)
    return static_cast<float>(static_cast<std::int32_t>(next() >> 40) - (1 << 23)) * 0x1p-23f;
  }
  std::int8_t byte() { return static_cast<std::int8_t>(next() >> 56); }
  std::vector<float> reals(std::size_t n, float magnitude) {
    std::vector<float> values(n);
    for (float& value : values) value = real() * magnitude;
    return values;
  }
};

// Memory that ends where no page follows: reading or writing past the end is a crash.
template <class T>
class Guarded {
 public:
  explicit Guarded(std::size_t size) : size_(size), page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    bytes_ = (size * sizeof(T) + page_ - 1) / page_ * page_ + page_;
    void* base = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) std::abort();
    base_ = static_cast<char*>(base);
    if (mprotect(base_ + bytes_ - page_, page_, PROT_NONE) != 0) std::abort();
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(base_, bytes_); }
  T* data() const { return reinterpret_cast<T*>(base_ + bytes_ - page_) - size_; }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_, page_, bytes_;
  char* base_;
};

template <class Call>
struct Level {
  const char* name;
  void (*run)(const Call&);
};

bool runs(Isa isa) {
#if defined(PYCOMPRESS_EMULATED)
  if (isa == Isa::avxvnni) return cpu_has(Isa::avx512vnni);
  if (isa == Isa::amx) return cpu_has(Isa::avx512icl);
#endif
  return cpu_has(isa);
}

template <class Call>
std::vector<Level<Call>> levels_of_this_cpu() {
  std::vector<Level<Call>> all;
#define KERNEL(operation, isa)                                               \
  if constexpr (std::is_same_v<Call, operation##_call>) {                    \
    if (runs(Isa::isa)) all.push_back({isa_name(Isa::isa), operation##_##isa}); \
  }
#include "../../csrc/kernels.def"
#undef KERNEL
  return all;
}

// Every level against the scalar one, and a digest that must not depend on the architecture.
template <class Call>
struct Totals {
  std::vector<Level<Call>> levels = levels_of_this_cpu<Call>();
  std::size_t problems = 0, comparisons = 0, mismatches = 0;
  std::uint64_t digest = 0xcbf29ce484222325u;  // FNV-1a

  void note(std::uint32_t word) { digest = (digest ^ word) * 0x100000001b3u; }

  // The sign of a NaN depends on the architecture.
  void note_float(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    note(value == value ? bits : 0x7fc00000u);
  }

  // solve(level, threads) returns a vector: the scalar one is returned, and all others must have its bits.
  template <class Solve, class Describe>
  auto check(const Solve& solve, const Describe& describe) {
    const auto expected = solve(levels[0], 1);
    const auto differs = [&](const auto& got, std::size_t at) {
      return std::memcmp(&got[at], &expected[at], sizeof(got[at])) != 0;
    };
    ++problems;
    for (const Level<Call>& level : levels) {
      for (const int threads : {1, 3}) {
        if (&level == &levels[0] && threads == 1) continue;
        const auto got = solve(level, threads);
        ++comparisons;
        std::size_t at = 0;
        while (at < got.size() && at < expected.size() && !differs(got, at)) ++at;
        if (at == got.size() && at == expected.size()) continue;
        if (++mismatches > 10) continue;
        std::printf("%s, %d threads: value %zu of %zu differs: %s\n", level.name, threads, at, expected.size(),
                    describe().c_str());
      }
    }
    return expected;
  }

  void print_levels() const {
    std::printf("levels");
    for (const Level<Call>& level : levels) std::printf(" %s", level.name);
    std::printf("\n");
  }

  // Returns what the program exits with.
  int print() const {
    std::printf("problems %zu, comparisons %zu, mismatches %zu\n", problems, comparisons, mismatches);
    std::printf("digest %016llx\n", static_cast<unsigned long long>(digest));
    return mismatches == 0 ? 0 : 1;
  }
};

}  // namespace
}  // namespace pycompress
