// scores for any CPU: the plain loops.
#include "../isa.h"
#include "../thread_pool.h"
#include "scores.h"

namespace pycompress {
namespace {

#include "loop.inc"

}  // namespace

void scores_scalar(const scores_call& call) { run(call); }

}  // namespace pycompress
