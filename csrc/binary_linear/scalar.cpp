// binary_linear for any CPU: see count_scalar.inc.
#include "../int8_linear/int8_linear.h"
#include "../isa.h"
#include "../thread_pool.h"
#include "binary_linear.h"

namespace pycompress {
namespace {

#include "../int8_linear/micro_scalar.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "count_scalar.inc"
//
#include "loop.inc"

}  // namespace

void binary_linear_scalar(const binary_linear_call& call) { run(call); }

}  // namespace pycompress
