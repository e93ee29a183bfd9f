// codebook_linear for any CPU: see lookup_scalar.inc.
#include <type_traits>

#include "../int8_linear/int8_linear.h"
#include "../isa.h"
#include "../thread_pool.h"
#include "codebook_linear.h"

namespace pycompress {
namespace {

#include "../int8_linear/micro_scalar.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "shared.inc"
//
#include "lookup_scalar.inc"
//
#include "loop.inc"

}  // namespace

void codebook_linear_scalar(const codebook_linear_call& call) { run(call); }

}  // namespace pycompress
