// sparse_conv on AVX-512: see ../sparse_linear/avx512.cpp. Most lines cross a cache line, which L1 takes another cycle for.
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_conv.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "../sparse_linear/vectors_avx512.inc"

constexpr double entry_us = 7e-4;

#include "../activation.inc"
//
#include "../sparse_linear/blocks.inc"
//
#include "../sparse_linear/tile.inc"
//
#include "loop.inc"

}  // namespace

void sparse_conv_avx512(const sparse_conv_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
