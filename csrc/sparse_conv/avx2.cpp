// sparse_conv on AVX2: see ../sparse_linear/avx2.cpp. Half of the lines that a weight takes cross a cache line.
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_conv.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

#include "../sparse_linear/x86.inc"

using Wide = Narrow;
constexpr int accumulators = 8;
constexpr double entry_us = 1e-3;

#include "../activation.inc"
//
#include "../sparse_linear/blocks.inc"
//
#include "../sparse_linear/tile.inc"
//
#include "loop.inc"

}  // namespace

void sparse_conv_avx2(const sparse_conv_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
