// threshold on AVX-512: the plain loops, vectorized by the compiler for this level.
#include <type_traits>

#include "../isa.h"
#include "../thread_pool.h"
#include "threshold.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "../element.inc"

#include "loop.inc"

}  // namespace

void threshold_avx512(const threshold_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
