// bf16_linear on NEON: a byte shuffle for each 4 bits of the mask, from a table of 256 bytes, brings 4 weights to their
// places. Limit: 16 sums (2 rows x 32 outputs) for 8 loads of weights. Not timed: there was no Arm machine; its results
// were compared under an emulator.
#include "../isa.h"
#include "../thread_pool.h"
#include "bf16_linear.h"

#if PYCOMPRESS_ARM64
namespace pycompress {
namespace {

struct Places {  // bytes of the values of 4 outputs, as the upper halves of 4 floats, for each mask; 255: zero
  std::uint8_t of[16][16];
  constexpr Places() : of() {
    for (int mask = 0; mask < 16; ++mask) {
      int next = 0;
      for (int i = 0; i < 4; ++i) {
        const bool kept = mask >> i & 1;
        of[mask][4 * i] = of[mask][4 * i + 1] = 255;
        of[mask][4 * i + 2] = static_cast<std::uint8_t>(kept ? 2 * next : 255);
        of[mask][4 * i + 3] = static_cast<std::uint8_t>(kept ? 2 * next + 1 : 255);
        next += kept;
      }
    }
  }
};
constexpr Places places;

}  // namespace
}  // namespace pycompress

PYCOMPRESS_BEGIN_NEON
namespace pycompress {
namespace {

struct Line {
  using V = float32x4_t;
  static constexpr std::size_t lanes = 4;
  static V load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, V v) { vst1q_f32(p, v); }
  static V set1(float v) { return vdupq_n_f32(v); }
  static V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
  static V expand(std::uint32_t bits, const std::uint16_t* values) {
    const uint8x16_t words = vreinterpretq_u8_u16(vld1q_u16(values));
    return vreinterpretq_f32_u8(vqtbl1q_u8(words, vld1q_u8(places.of[bits])));
  }
};

constexpr int tile_rows = 2, direct_rows = 2;
constexpr double mac_per_us = 1e4;

#include "../activation.inc"
//
#include "rounding.inc"
//
#include "loop.inc"

}  // namespace

void bf16_linear_neon(const bf16_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
