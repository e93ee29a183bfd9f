// threshold on AVX2: the plain loops, vectorized by the compiler for this level.
#include <type_traits>

#include "../isa.h"
#include "../thread_pool.h"
#include "threshold.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

#include "../element.inc"

#include "loop.inc"

}  // namespace

void threshold_avx2(const threshold_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
