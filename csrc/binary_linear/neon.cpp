// binary_linear for Arm: see count_neon.inc.
#include "../int8_linear/int8_linear.h"
#include "../isa.h"
#include "../thread_pool.h"
#include "binary_linear.h"

#if PYCOMPRESS_ARM64
PYCOMPRESS_BEGIN_NEON
namespace pycompress {
namespace {

#include "../int8_linear/micro_neon.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "count_neon.inc"
//
#include "loop.inc"

}  // namespace

void binary_linear_neon(const binary_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
