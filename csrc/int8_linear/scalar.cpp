// int8_linear for any CPU: the plain loops, which a compiler may vectorize for its baseline.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

namespace pycompress {
namespace {

using Activation = std::int8_t;
constexpr int activation_offset = 0;
constexpr int max_rows = 4;
constexpr double mac_per_us = 2e3;

template <int rows>
void accumulate(const Activation* q, std::size_t stride, const std::int8_t* panel, std::size_t first, std::size_t last,
                std::size_t groups, const std::int32_t*, std::int32_t* acc) {
  for (std::size_t i = 0; i < rows * int8_panel; ++i) acc[i] = 0;
  for (std::size_t group = first; group < last; ++group) {
    const std::size_t block = group / 16, in_block = groups - block * 16 < 16 ? groups - block * 16 : 16;
    const std::int8_t* line = panel + block * 2048 + (group % 16) * 64;
    for (int r = 0; r < rows; ++r) {
      const Activation* a = q + r * stride + group * 4;
      for (std::size_t tile = 0; tile < 2; ++tile) {
        for (std::size_t o = 0; o < 16; ++o) {
          const std::int8_t* w = line + tile * in_block * 64 + o * 4;
          acc[r * int8_panel + tile * 16 + o] += a[0] * w[0] + a[1] * w[1] + a[2] * w[2] + a[3] * w[3];
        }
      }
    }
  }
}

#include "loop.inc"

}  // namespace

void int8_linear_scalar(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
