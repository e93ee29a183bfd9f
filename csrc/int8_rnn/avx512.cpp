// int8_rnn for AVX-512 without VNNI: see ../int8_linear/micro_avx512.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_rnn.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

#include "../int8_linear/micro_avx512.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "../int8_linear/line_avx512.inc"
//
#include "../int8_linear/sparse.inc"
//
#include "loop.inc"

}  // namespace

void int8_rnn_avx512(const int8_rnn_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
