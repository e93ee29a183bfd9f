// binary_linear for AVX-512 without vpopcntq: see count_avx512.inc.
#include "../int8_linear/int8_linear.h"
#include "../isa.h"
#include "../thread_pool.h"
#include "binary_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "../int8_linear/micro_avx512.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "count_avx512.inc"
//
#include "loop.inc"

}  // namespace

void binary_linear_avx512(const binary_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
