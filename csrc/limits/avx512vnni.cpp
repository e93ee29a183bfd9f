// limits on AVX-512 with VNNI: vpdpbusd.
#include "../isa.h"
#include "../thread_pool.h"
#include "limits.h"

#define PYCOMPRESS_LIMITS_REGISTER "v"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512VNNI
namespace pycompress {
namespace {

using Vector = __m512i;
using Floats = __m512;
constexpr int int8_operations = 128, fp32_operations = 32;
constexpr int int8_sums = 12, fp32_sums = 12;

Vector load(const std::uint8_t* data) { return _mm512_loadu_si512(data); }
Vector mix(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
void int8_step(Vector& sum, Vector a, Vector b) { sum = _mm512_dpbusd_epi32(sum, a, b); }
void fp32_step(Floats& sum, Floats a, Floats b) { sum = _mm512_fmadd_ps(a, b, sum); }

#include "loop.inc"

}  // namespace

void limits_avx512vnni(const limits_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
