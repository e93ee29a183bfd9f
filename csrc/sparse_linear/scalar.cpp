// sparse_linear for any CPU. Multiply and add are rounded apart: a fused one would be a library call.
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_linear.h"

namespace pycompress {
namespace {

#include "vectors_scalar.inc"

constexpr double entry_us = 4e-3;
constexpr std::size_t strip = 8;
constexpr bool strip_adds = false;
void transpose_strip(const float* from, std::size_t from_stride, const float*, float* to, std::size_t to_stride) {
  transpose8(from, from_stride, to, to_stride);
}

#include "../activation.inc"
//
#include "blocks.inc"
//
#include "loop.inc"

}  // namespace

void sparse_linear_scalar(const sparse_linear_call& call) { run(call); }

}  // namespace pycompress
