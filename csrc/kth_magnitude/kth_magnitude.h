// kth_magnitude: the exact k-th smallest |x| over several arrays of fp32, fp16 or bf16, without copying them.
//
// A magnitude is compared as the integer of its bits without the sign (as fp32), which orders like the float and puts NaN
// last. A sample, one element from each of 65536 equal stretches, brackets the answer; one pass counts what lies below the
// bracket and keeps what lies inside, and a selection among those few gives the answer. Where an end of the bracket is a
// value of very many elements (pruned weights, few levels), a second pass keeps what lies strictly inside. When the
// bracket misses, or keeps too much even so, two passes of radix selection, 16 and 15 bits, find it for sure. select.cpp
// holds all of this; a level gives only `filter`.
//
// Limit: memory bandwidth, one read. Threads: over pieces of 32 Ki elements.
// Source: Floyd & Rivest 1975 (sampled bracket).
#pragma once

#include <cstddef>
#include <cstdint>

#include "../element.h"

namespace pycompress {

enum class KthWay : int { bracket, ties, radix };

struct kth_magnitude_call {
  const void* const* arrays;
  const std::size_t* sizes;
  const Element* types;
  std::size_t count;
  std::uint64_t k;   // from 1
  int threads;
  float* value;      // result; NaN when there is a NaN anywhere
  KthWay* way;       // how it was found: one pass, two, or radix selection
};

// Counts in x [n] the magnitudes below `low` and copies those in [low, high] to `kept`, which has room for n + 16;
// returns how many there are. `largest` becomes the larger of itself and the largest bits seen.
using kth_filter = std::size_t (*)(const void* x, Element type, std::size_t n, std::uint32_t low, std::uint32_t high,
                                   std::uint32_t* kept, std::uint64_t* below, std::uint32_t* largest);

void select_kth(const kth_magnitude_call& call, kth_filter filter);

}  // namespace pycompress
