// int8_rnn for AVX-512 VNNI with VBMI2, which expands the bytes of a bitmap: see ../int8_linear/micro_avx512vnni.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_rnn.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512ICL
namespace pycompress {
namespace {

#include "../int8_linear/micro_avx512vnni.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "../int8_linear/expand_vbmi2.inc"
//
#include "../int8_linear/line_avx512vnni.inc"
//
#include "../int8_linear/sparse.inc"
//
#include "loop.inc"

}  // namespace

void int8_rnn_avx512icl(const int8_rnn_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
