// threshold: what lies above it, |x| > t (Han et al. 2015), of x [n] fp32, fp16 or bf16, in any of four forms, in one
// pass: x = 0 elsewhere, in place; a mask of bytes; a bitmap; gaps and values, the coding of pruned weights in files.
//
// Magnitudes are compared as the integers of their bits without the sign, with the largest such integer that is not
// above t: exact for every type. Mask: -1 (all bits set) = kept. Bitmap: bit i % 8 of byte i / 8, the last byte filled
// up with zeros. Gaps: the number of zeros before each value, 0 to 254; 255 says 255 zeros and no value (formats.py).
//
// Limit: memory bandwidth, one read and what is written. Threads: over runs of pieces of 4 Ki elements, which stay in L1
// from one form to the next; each run codes its gaps and values apart, and `joined` puts them together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../element.h"

namespace pycompress {

// The coded values of one run of elements.
struct PackedRun {
  std::vector<std::uint8_t> gaps;    // of the values but the first
  std::vector<std::uint8_t> values;  // their bytes
  std::uint64_t leading = 0;         // zeros before the first value; all elements where there is none
  std::uint64_t trailing = 0;        // zeros after the last one
};

struct threshold_call {
  std::size_t n;
  int threads;
  Element type;
  float threshold;               // 0 or more
  bool write;                    // whether x is changed
  void* x;                       // [n]
  std::int8_t* mask;             // [n], or null
  std::uint8_t* bitmap;          // [ceil(n / 8)], or null
  std::vector<PackedRun>* runs;  // or null
  std::uint64_t* zeros;          // result: how many are not above
  bool* nan;                     // result: whether there is a NaN; the forms are then of no use
};

}  // namespace pycompress
