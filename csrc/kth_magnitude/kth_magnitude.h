// kth_magnitude: the exact k-th smallest |x| over several arrays, without copying them.
//
// A magnitude is compared as the integer of its bits without the sign, which orders like the float and puts NaN last. A
// sample brackets the answer; one pass counts what lies below the bracket and keeps what lies inside, and a selection
// among those few gives the answer. When the bracket misses or keeps too much (heavy ties, clustered or sorted data), two
// passes of radix selection, 16 and 15 bits, find it for sure: select.h holds both, and a level gives only `filter`.
//
// Limit: memory bandwidth, one read. Threads: over pieces of 32 Ki elements.
// Source: Floyd & Rivest 1975 (sampled bracket).
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

struct kth_magnitude_call {
  const float* const* arrays;
  const std::size_t* sizes;
  std::size_t count;
  std::uint64_t k;   // from 1
  int threads;
  float* value;      // result; NaN when there is a NaN anywhere
};

// Counts in x [n] the magnitudes below `low` and copies those in [low, high] to `kept`, at most `room`; returns how many
// there are. `largest` becomes the larger of itself and the largest bits seen.
using kth_filter = std::size_t (*)(const float* x, std::size_t n, std::uint32_t low, std::uint32_t high,
                                   std::uint32_t* kept, std::size_t room, std::uint64_t* below,
                                   std::uint32_t* largest);

float select_kth(const kth_magnitude_call& call, kth_filter filter);

}  // namespace pycompress
