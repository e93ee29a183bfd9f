// sparse_linear for any CPU. Multiply and add are rounded apart: a fused one would be a library call.
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_linear.h"

namespace pycompress {
namespace {

#include "vectors_scalar.inc"

constexpr double entry_us = 4e-3;

#include "../activation.inc"
//
#include "strip8.inc"
//
#include "blocks.inc"
//
#include "loop.inc"

}  // namespace

void sparse_linear_scalar(const sparse_linear_call& call) { run(call); }

}  // namespace pycompress
