// int8_rnn for Arm with the int8 matrix product (ARMv8.6): see ../int8_linear/micro_i8mm.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_rnn.h"

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
#include "../int8_linear/line_dot.inc"
//
#include "../int8_linear/sparse.inc"
//
#include "loop.inc"

}  // namespace

void int8_rnn_i8mm(const int8_rnn_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
