// int8_linear for AMX: see amx.inc.
#include "../isa.h"
#include "../thread_pool.h"
#include "int8_linear.h"

#if PYCOMPRESS_X86
namespace pycompress {
void int8_linear_avx512icl(const int8_linear_call& call);
}

PYCOMPRESS_BEGIN_AMX
namespace pycompress {
namespace {

#include "micro_amx.inc"
//
#include "../activation.inc"
//
#include "rows.inc"
//
#include "images.inc"
//
#include "integers.inc"
//
#include "expand_vbmi2.inc"
//
#include "amx_forms.inc"
//
#include "amx_blocks.inc"
//
#include "amx.inc"

}  // namespace

void int8_linear_amx(const int8_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
