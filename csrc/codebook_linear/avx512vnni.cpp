// codebook_linear for AVX-512 VNNI: see lookup_avx512.inc and run_avx512vnni.inc.
#include <type_traits>

#include "../int8_linear/int8_linear.h"
#include "../isa.h"
#include "../thread_pool.h"
#include "codebook_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512VNNI
namespace pycompress {
namespace {

#include "../int8_linear/micro_avx512vnni.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "shared.inc"
//
#include "lookup_avx512.inc"
//
#include "run_avx512vnni.inc"

}  // namespace

void codebook_linear_avx512vnni(const codebook_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
