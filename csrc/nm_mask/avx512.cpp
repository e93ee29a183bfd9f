// nm_mask on AVX-512: the plain loops, vectorized by the compiler for this level.
#include "../isa.h"
#include "../thread_pool.h"
#include "nm_mask.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "../element.inc"

#include "loop.inc"

}  // namespace

void nm_mask_avx512(const nm_mask_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
