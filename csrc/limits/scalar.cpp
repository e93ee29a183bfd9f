// limits without vector instructions: one multiplication at a time.
#include "../isa.h"
#include "../thread_pool.h"
#include "limits.h"

#define PYCOMPRESS_LIMITS_REGISTER "r"

namespace pycompress {
namespace {

using Vector = std::uint64_t;
using Floats = std::uint64_t;  // fp32 is not measured here: registers of two kinds would need two loops
constexpr int int8_operations = 2, fp32_operations = 0;
constexpr int int8_sums = 4, fp32_sums = 4;

Vector load(const std::uint8_t* data) { return *reinterpret_cast<const Vector*>(data); }
Vector mix(Vector a, Vector b) { return a ^ b; }
void int8_step(Vector& sum, Vector a, Vector b) { sum += a * b; }
void fp32_step(Floats& sum, Floats a, Floats b) { sum += a * b; }

#include "loop.inc"

}  // namespace

void limits_scalar(const limits_call& call) { run(call); }

}  // namespace pycompress
