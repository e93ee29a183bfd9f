// sparse_linear for any CPU. Multiply and add are rounded apart: a fused one would be a library call.
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_linear.h"

namespace pycompress {
namespace {

struct One {
  using V = float;
  static constexpr std::size_t lanes = 1;
  static V load(const float* p) { return *p; }
  static void store(float* p, V v) { *p = v; }
  static V set1(float v) { return v; }
  static V fma(V a, V b, V c) { return a * b + c; }
};

template <int n>
struct Lanes {
  struct V {
    float lane[n];
  };
  static constexpr std::size_t lanes = n;
  static V load(const float* p) {
    V v;
    __builtin_memcpy(v.lane, p, sizeof(v.lane));
    return v;
  }
  static void store(float* p, const V& v) { __builtin_memcpy(p, v.lane, sizeof(v.lane)); }
  static float set1(float v) { return v; }
  static V fma(float a, const V& b, const V& c) {
    V v;
    for (int i = 0; i < n; ++i) v.lane[i] = a * b.lane[i] + c.lane[i];
    return v;
  }
};

using Quad = Lanes<4>;
using Narrow = Lanes<8>;
using Wide = Narrow;
constexpr int accumulators = 8;

void transpose8(const float* from, std::size_t from_stride, float* to, std::size_t to_stride) {
  for (std::size_t r = 0; r < 8; ++r) {
    for (std::size_t c = 0; c < 8; ++c) to[c * to_stride + r] = from[r * from_stride + c];
  }
}

constexpr double entry_us = 4e-3;

#include "../activation.inc"
//
#include "blocks.inc"
//
#include "loop.inc"

}  // namespace

void sparse_linear_scalar(const sparse_linear_call& call) { run(call); }

}  // namespace pycompress
