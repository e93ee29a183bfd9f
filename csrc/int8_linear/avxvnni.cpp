// int8_linear for AVX2 with VNNI: see micro_avxvnni.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVXVNNI
namespace pycompress {
namespace {

#include "micro_avxvnni.inc"
//
#include "../activation.inc"
//
#include "rows.inc"
//
#include "line_avxvnni.inc"
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

void int8_linear_avxvnni(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
