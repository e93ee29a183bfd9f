// sparse_linear on AVX2: a stored weight is broadcast and multiplied with a line of the activations' panel.
// Limit: one load of activations for each fused multiply-add. Up to 8 sums (64 rows of one output, or several outputs of
// equal count at fewer rows) hide the latency.
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

#include "x86.inc"

using Wide = Narrow;
constexpr int accumulators = 8;
constexpr double entry_us = 1e-3;

#include "../activation.inc"
//
#include "strip8.inc"
//
#include "blocks.inc"
//
#include "loop.inc"

}  // namespace

void sparse_linear_avx2(const sparse_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
