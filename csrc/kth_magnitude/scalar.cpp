// kth_magnitude for any CPU: a branch-free filter.
#include "../isa.h"
#include "kth_magnitude.h"

namespace pycompress {
namespace {

#include "../element.inc"

template <class T>
std::size_t filter_as(const T* x, std::size_t n, std::uint32_t low, std::uint32_t high, std::uint32_t* kept,
                      std::uint64_t* below, std::uint32_t* largest) {
  std::size_t size = 0;
  std::uint64_t under = 0;
  std::uint32_t most = *largest;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t bits = key(widen(x[i]));
    most = bits > most ? bits : most;
    under += bits < low;
    kept[size] = bits;  // size < n here, and kept holds n
    size += bits >= low && bits <= high;
  }
  *below += under;
  *largest = most;
  return size;
}

std::size_t filter(const void* x, Element type, std::size_t n, std::uint32_t low, std::uint32_t high,
                   std::uint32_t* kept, std::uint64_t* below, std::uint32_t* largest) {
  std::size_t size = 0;
  with_element(type, x, [&](const auto* p) { size = filter_as(p, n, low, high, kept, below, largest); });
  return size;
}

}  // namespace

void kth_magnitude_scalar(const kth_magnitude_call& call) { select_kth(call, filter); }

}  // namespace pycompress
