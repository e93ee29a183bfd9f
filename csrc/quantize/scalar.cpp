// quantize for any CPU: the plain loops.
#include "../isa.h"
#include "../thread_pool.h"
#include "quantize.h"

namespace pycompress {
namespace {

#include "loop.inc"

}  // namespace

void quantize_scalar(const quantize_call& call) { run(call); }

}  // namespace pycompress
