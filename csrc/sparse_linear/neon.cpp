// sparse_linear on NEON: as on AVX2, with two vectors of 4 lanes for 8 rows; 8 sums of 8 rows take 16 of 32 registers.
// Limit: one load of activations for each fused multiply-add where outputs do not come in blocks. Not timed: there was
// no Arm machine; its results were compared under an emulator.
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_linear.h"

#if PYCOMPRESS_ARM64
PYCOMPRESS_BEGIN_NEON
namespace pycompress {
namespace {

struct One {
  using V = float;
  static constexpr std::size_t lanes = 1;
  static V load(const float* p) { return *p; }
  static void store(float* p, V v) { *p = v; }
  static V set1(float v) { return v; }
  static V fma(V a, V b, V c) { return __builtin_fmaf(a, b, c); }
};

struct Quad {
  using V = float32x4_t;
  static constexpr std::size_t lanes = 4;
  static V load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, V v) { vst1q_f32(p, v); }
  static V set1(float v) { return vdupq_n_f32(v); }
  static V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
};

struct Narrow {
  struct V {
    float32x4_t low, high;
  };
  static constexpr std::size_t lanes = 8;
  static V load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static void store(float* p, V v) {
    vst1q_f32(p, v.low);
    vst1q_f32(p + 4, v.high);
  }
  static float32x4_t set1(float v) { return vdupq_n_f32(v); }
  static V fma(float32x4_t a, V b, V c) { return {vfmaq_f32(c.low, a, b.low), vfmaq_f32(c.high, a, b.high)}; }
};

using Wide = Narrow;
constexpr int accumulators = 8;
constexpr double entry_us = 2e-3;

void transpose4(const float* from, std::size_t from_stride, float* to, std::size_t to_stride) {
  float32x4_t r[4];
  for (int i = 0; i < 4; ++i) r[i] = vld1q_f32(from + i * from_stride);
  const float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
  vst1q_f32(to, vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0])));
  vst1q_f32(to + to_stride, vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1])));
  vst1q_f32(to + 2 * to_stride, vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0])));
  vst1q_f32(to + 3 * to_stride, vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1])));
}

void transpose8(const float* from, std::size_t from_stride, float* to, std::size_t to_stride) {
  for (std::size_t r = 0; r < 8; r += 4) {
    for (std::size_t c = 0; c < 8; c += 4) {
      transpose4(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
    }
  }
}

#include "../activation.inc"
//
#include "blocks.inc"
//
#include "loop.inc"

}  // namespace

void sparse_linear_neon(const sparse_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
