// quantize on AVX2: the plain loops, which the compiler vectorizes for this level.
#include "../isa.h"
#include "../thread_pool.h"
#include "quantize.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

#include "loop.inc"

}  // namespace

void quantize_avx2(const quantize_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
