// codebook_linear for Arm's int8 matrix product: see lookup_neon.inc.
#include <type_traits>

#include "../int8_linear/int8_linear.h"
#include "../isa.h"
#include "../thread_pool.h"
#include "codebook_linear.h"

#if PYCOMPRESS_ARM64
PYCOMPRESS_BEGIN_I8MM
namespace pycompress {
namespace {

#include "../int8_linear/micro_i8mm.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "shared.inc"
//
#include "lookup_neon.inc"
//
#include "loop.inc"

}  // namespace

void codebook_linear_i8mm(const codebook_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
