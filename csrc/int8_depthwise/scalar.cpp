// int8_depthwise for any CPU: the plain loops, along the channels.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_depthwise.h"

namespace pycompress {
namespace {

#include "../int8_linear/micro_scalar.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "../int8_linear/images.inc"

constexpr std::size_t deep_lanes = 16, deep_taps = 1;
constexpr int deep_offset = 0;
using Woven = std::int8_t;

std::size_t sum_place(std::size_t channel) { return channel; }

template <int offset>
inline void weave(const std::int8_t* const* rows, std::size_t n, Woven* to) {
  for (std::size_t c = 0; c < deep_lanes; ++c) to[c] = c < n ? rows[0][c] : std::int8_t{0};
}

template <int columns>
void deep_dots(const Woven* lanes, std::size_t step, const std::size_t* taps, std::size_t count, const Woven* weight,
               const std::int32_t* start, std::int32_t (*sums)[deep_lanes]) {
  for (std::size_t k = 0; k < columns; ++k) {
    for (std::size_t c = 0; c < deep_lanes; ++c) sums[k][c] = start[c];
    for (std::size_t i = 0; i < count; ++i) {
      const Woven *a = lanes + k * step + taps[i], *w = weight + i * deep_lanes;
      for (std::size_t c = 0; c < deep_lanes; ++c) sums[k][c] += a[c] * w[c];
    }
  }
}

#include "loop.inc"

}  // namespace

void int8_depthwise_scalar(const int8_depthwise_call& call) { run(call); }

}  // namespace pycompress
