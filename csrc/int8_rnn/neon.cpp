// int8_rnn for Arm without the dot product: see ../int8_linear/micro_neon.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_rnn.h"

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
#include "../int8_linear/line_plain.inc"
//
#include "../int8_linear/sparse.inc"
//
#include "loop.inc"

}  // namespace

void int8_rnn_neon(const int8_rnn_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
