// int8_linear for any CPU: see micro_scalar.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

namespace pycompress {
namespace {

#include "micro_scalar.inc"
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

void int8_linear_scalar(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
