// limits on AVX2: vpmaddwd of 16-bit values and an addition, fused multiply-adds of 8 floats.
#include "../isa.h"
#include "../thread_pool.h"
#include "limits.h"

#define PYCOMPRESS_LIMITS_REGISTER "x"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX2
namespace pycompress {
namespace {

using Vector = __m256i;
using Floats = __m256;
constexpr int int8_operations = 32, fp32_operations = 16;
constexpr int int8_sums = 7, fp32_sums = 12;

Vector load(const std::uint8_t* data) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)); }
Vector mix(Vector a, Vector b) { return _mm256_xor_si256(a, b); }
void int8_step(Vector& sum, Vector a, Vector b) { sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
void fp32_step(Floats& sum, Floats a, Floats b) { sum = _mm256_fmadd_ps(a, b, sum); }

#include "loop.inc"

}  // namespace

void limits_avx2(const limits_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
