// binary_linear for AVX2: see count_avx2.inc.
#include "../int8_linear/int8_linear.h"
#include "../isa.h"
#include "../thread_pool.h"
#include "binary_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

#include "../int8_linear/micro_avx2.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "count_avx2.inc"
//
#include "loop.inc"

}  // namespace

void binary_linear_avx2(const binary_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
