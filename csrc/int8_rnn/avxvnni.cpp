// int8_rnn for AVX2 with VNNI: see ../int8_linear/micro_avxvnni.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_rnn.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVXVNNI
namespace pycompress {
namespace {

#include "../int8_linear/micro_avxvnni.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "../int8_linear/line_avxvnni.inc"
//
#include "../int8_linear/sparse.inc"
//
#include "loop.inc"

}  // namespace

void int8_rnn_avxvnni(const int8_rnn_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
