// sparse_linear on AVX-512: as on AVX2 with lines of 16 rows; 64 rows of two outputs of equal count at a time (8 sums).
#include "../isa.h"
#include "../thread_pool.h"
#include "sparse_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "vectors_avx512.inc"

constexpr double entry_us = 7e-4;

#include "../activation.inc"
//
#include "blocks.inc"
//
#include "loop.inc"

}  // namespace

void sparse_linear_avx512(const sparse_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
