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

#include "vectors_neon.inc"

constexpr double entry_us = 2e-3;

#include "../activation.inc"
//
#include "strip8.inc"
//
#include "blocks.inc"
//
#include "loop.inc"

}  // namespace

void sparse_linear_neon(const sparse_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
