// nm_mask for any CPU: the plain loop.
#include "../isa.h"
#include "../thread_pool.h"
#include "nm_mask.h"

namespace pycompress {
namespace {

#include "../element.inc"

#include "loop.inc"

}  // namespace

void nm_mask_scalar(const nm_mask_call& call) { run(call); }

}  // namespace pycompress
