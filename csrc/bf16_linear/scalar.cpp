// bf16_linear for any CPU. Multiply and add are rounded apart: a fused one would be a library call.
#include "../isa.h"
#include "../thread_pool.h"
#include "bf16_linear.h"

namespace pycompress {
namespace {

struct Line {
  struct V {
    float lane[8];
  };
  static constexpr std::size_t lanes = 8;
  static V load(const float* p) {
    V v;
    __builtin_memcpy(v.lane, p, sizeof(v.lane));
    return v;
  }
  static void store(float* p, const V& v) { __builtin_memcpy(p, v.lane, sizeof(v.lane)); }
  static float set1(float v) { return v; }
  static V fma(float a, const V& b, const V& c) {
    V v;
    for (int i = 0; i < 8; ++i) v.lane[i] = a * b.lane[i] + c.lane[i];
    return v;
  }
  static V expand(std::uint32_t bits, const std::uint16_t* values) {
    V v{};
    for (; bits != 0; bits &= bits - 1) {
      const std::uint32_t value = static_cast<std::uint32_t>(*values++) << 16;
      __builtin_memcpy(v.lane + __builtin_ctz(bits), &value, 4);
    }
    return v;
  }
};

constexpr int tile_rows = 1, direct_rows = 1;
constexpr double mac_per_us = 1e3;

#include "../activation.inc"
//
#include "rounding.inc"
//
#include "loop.inc"

}  // namespace

void bf16_linear_scalar(const bf16_linear_call& call) { run(call); }

}  // namespace pycompress
