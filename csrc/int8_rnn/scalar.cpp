// int8_rnn for any CPU: see ../int8_linear/micro_scalar.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_rnn.h"

namespace pycompress {
namespace {

#include "../int8_linear/micro_scalar.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "../int8_linear/line_plain.inc"
//
#include "../int8_linear/sparse.inc"
//
#include "loop.inc"

}  // namespace

void int8_rnn_scalar(const int8_rnn_call& call) { run(call); }

}  // namespace pycompress
