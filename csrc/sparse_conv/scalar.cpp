// sparse_conv for any CPU: see ../sparse_linear/scalar.cpp.
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_conv.h"

namespace pycompress {
namespace {

#include "../sparse_linear/vectors_scalar.inc"

constexpr double entry_us = 4e-3;

#include "../activation.inc"
//
#include "../sparse_linear/blocks.inc"
//
#include "../sparse_linear/tile.inc"
//
#include "loop.inc"

}  // namespace

void sparse_conv_scalar(const sparse_conv_call& call) { run(call); }

}  // namespace pycompress
