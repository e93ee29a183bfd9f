// int8_rnn for Arm with the dot product (ARMv8.2): see ../int8_linear/micro_neondot.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_rnn.h"

#if PYCOMPRESS_ARM64
PYCOMPRESS_BEGIN_NEONDOT
namespace pycompress {
namespace {

#include "../int8_linear/micro_neondot.inc"
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

void int8_rnn_neondot(const int8_rnn_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
