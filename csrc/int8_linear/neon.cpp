// int8_linear for Arm without the dot product: see micro_neon.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

#if PYCOMPRESS_ARM64
PYCOMPRESS_BEGIN_NEON
namespace pycompress {
namespace {

#include "micro_neon.inc"
//
#include "../activation.inc"
//
#include "rows.inc"
//
#include "line_plain.inc"
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

void int8_linear_neon(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
