// kth_magnitude for any CPU: a branch-free filter.
#include "../isa.h"
#include "kth_magnitude.h"

namespace pycompress {
namespace {

std::size_t filter(const float* x, std::size_t n, std::uint32_t low, std::uint32_t high, std::uint32_t* kept,
                   std::size_t, std::uint64_t* below, std::uint32_t* largest) {
  std::size_t size = 0;
  std::uint64_t under = 0;
  std::uint32_t most = *largest;
  for (std::size_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, x + i, 4);
    bits &= 0x7fffffffu;
    most = bits > most ? bits : most;
    under += bits < low;
    kept[size] = bits;  // size < n here, and kept holds n
    size += bits >= low && bits <= high;
  }
  *below += under;
  *largest = most;
  return size;
}

}  // namespace

void kth_magnitude_scalar(const kth_magnitude_call& call) { *call.value = select_kth(call, filter); }

}  // namespace pycompress
