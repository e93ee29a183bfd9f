// int8_linear for Arm with the dot product (ARMv8.2): see micro_neondot.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

#if PYCOMPRESS_ARM64
PYCOMPRESS_BEGIN_NEONDOT
namespace pycompress {
namespace {

#include "micro_neondot.inc"
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

void int8_linear_neondot(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
