// int8_linear for AVX2: see micro_avx2.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

#include "micro_avx2.inc"
//
#include "../activation.inc"
//
#include "rows.inc"
//
#include "line_avx2.inc"
//
#include "sparse.inc"
//
#include "columns_none.inc"
//
#include "images.inc"
//
#include "integers.inc"
//
#include "loop.inc"

}  // namespace

void int8_linear_avx2(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
