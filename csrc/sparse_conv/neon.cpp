// sparse_conv on NEON: see ../sparse_linear/neon.cpp. Not timed: there was no Arm machine.
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_conv.h"

#if PYCOMPRESS_ARM64
PYCOMPRESS_BEGIN_NEON
namespace pycompress {
namespace {

#include "../sparse_linear/vectors_neon.inc"

constexpr double entry_us = 2e-3;

#include "../activation.inc"
//
#include "../sparse_linear/blocks.inc"
//
#include "../sparse_linear/tile.inc"
//
#include "loop.inc"

}  // namespace

void sparse_conv_neon(const sparse_conv_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
