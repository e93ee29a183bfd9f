// int8_linear for Arm with the int8 matrix product (ARMv8.6): see micro_i8mm.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

#if PYCOMPRESS_ARM64
PYCOMPRESS_BEGIN_I8MM
namespace pycompress {
namespace {

#include "micro_i8mm.inc"
//
#include "../activation.inc"
//
#include "rows.inc"
//
#include "line_dot.inc"
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

void int8_linear_i8mm(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
