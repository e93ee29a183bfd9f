// int4_linear for AVX-512: see vectors_avx512.inc and dot_avx512.inc.
#include <type_traits>

#include "../int8_linear/int8_linear.h"
#include "../isa.h"
#include "../thread_pool.h"
#include "int4_linear.h"

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
#include "vectors_avx512.inc"
//
#include "dot_avx512.inc"
//
#include "expand.inc"
//
#include "loop.inc"

}  // namespace

void int4_linear_avx512(const int4_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
