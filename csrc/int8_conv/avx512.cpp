// int8_conv for AVX-512 without VNNI: see ../int8_linear/micro_avx512.inc.
#include <type_traits>

#include "../isa.h"
#include "../thread_pool.h"
#include "int8_conv.h"

#if PYCOMPRESS_X86
PYCOMPRESS_BEGIN_AVX512
namespace pycompress {
namespace {

// Lanes of the depthwise loop: two int16 multiplied by vpmaddwd.
using Lanes = __m512i;
constexpr int lane_count = 16, lane_taps = 2;

inline Lanes lanes_of(std::uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); }
inline Lanes load_lanes(const std::uint32_t* from) { return _mm512_loadu_si512(from); }
inline Lanes dot(Lanes sum, Lanes a, Lanes w) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, w)); }
inline void store_lanes(std::int32_t* to, Lanes sum) { _mm512_storeu_si512(to, sum); }

#include "../int8_linear/micro_avx512.inc"
//
#include "../activation.inc"
//
#include "../int8_linear/rows.inc"
//
#include "quantize.inc"
//
#include "deep.inc"
//
#include "words_avx2.inc"
//
#include "sparse.inc"
//
#include "loop.inc"

}  // namespace

void int8_conv_avx512(const int8_conv_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
