// int8_linear for AVX-512 VNNI: see micro_avx512vnni.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512VNNI
namespace pycompress {
namespace {

#include "micro_avx512vnni.inc"
//
#include "../activation.inc"
//
#include "rows.inc"
//
#include "expand_pdep.inc"
//
#include "line_avx512vnni.inc"
//
#include "sparse.inc"
//
#include "columns_avx512vnni.inc"
//
#include "images.inc"
//
#include "integers.inc"
//
#include "loop.inc"

}  // namespace

void int8_linear_avx512vnni(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
