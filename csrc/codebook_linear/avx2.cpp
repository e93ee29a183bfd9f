// codebook_linear for AVX2: see lookup_avx2.inc.
#include <type_traits>

#include "../int8_linear/int8_linear.h"
#include "../isa.h"
#include "../thread_pool.h"
#include "codebook_linear.h"

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
#include "shared.inc"
//
#include "lookup_avx2.inc"
//
#include "loop.inc"

}  // namespace

void codebook_linear_avx2(const codebook_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
