// scores on AVX-512: the plain loops, vectorized by the compiler for this level.
#include "../isa.h"
#include "../thread_pool.h"
#include "scores.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "loop.inc"

}  // namespace

void scores_avx512(const scores_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
