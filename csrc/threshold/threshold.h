// threshold: x = 0 where |x| <= t, in place, and the count of those entries (Han et al. 2015).
// Limit: memory bandwidth, one read and one write. Threads: over pieces of 32 Ki elements.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

struct threshold_call {
  std::size_t n;
  int threads;
  float threshold;      // 0 or more
  float* x;             // [n]
  std::uint64_t* zeros; // result
};

}  // namespace pycompress
