// int4_linear for any CPU: see micro_scalar.inc.
#include <type_traits>

#include "../int8_linear/int8_linear.h"
#include "../isa.h"
#include "../thread_pool.h"
#include "int4_linear.h"

namespace pycompress {
namespace {

#include "../int8_linear/micro_scalar.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "micro_scalar.inc"
//
#include "expand.inc"
//
#include "loop.inc"

}  // namespace

void int4_linear_scalar(const int4_linear_call& call) { run(call); }

}  // namespace pycompress
