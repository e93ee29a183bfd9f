// int8_conv for any CPU: see ../int8_linear/micro_scalar.inc.
#include <type_traits>

#include "../isa.h"
#include "../thread_pool.h"
#include "int8_conv.h"

namespace pycompress {
namespace {

// Lanes of the depthwise loop: one int32.
struct Lanes {
  std::int32_t value[4];
};
constexpr int lane_count = 4, lane_taps = 1;

inline Lanes lanes_of(std::uint32_t word) {
  const auto value = static_cast<std::int32_t>(word);
  return {{value, value, value, value}};
}

inline Lanes load_lanes(const std::uint32_t* from) {
  Lanes lanes;
  __builtin_memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

inline Lanes dot(Lanes sum, const Lanes& a, const Lanes& w) {
  for (int i = 0; i < lane_count; ++i) sum.value[i] += a.value[i] * w.value[i];
  return sum;
}

inline void store_lanes(std::int32_t* to, const Lanes& sum) { __builtin_memcpy(to, &sum, sizeof(sum)); }

#include "../int8_linear/micro_scalar.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "quantize.inc"
//
#include "deep.inc"
//
#include "words_scalar.inc"
//
#include "sparse.inc"
//
#include "loop.inc"

}  // namespace

void int8_conv_scalar(const int8_conv_call& call) { run(call); }

}  // namespace pycompress
