// threshold for any CPU: the plain loop.
#include <type_traits>

#include "../isa.h"
#include "../thread_pool.h"
#include "threshold.h"

namespace pycompress {
namespace {

#include "../element.inc"

#include "loop.inc"

}  // namespace

void threshold_scalar(const threshold_call& call) { run(call); }

}  // namespace pycompress
