// quantize: q = clamp(rint(x / scale[g] + zero_point[g]), low, high), and back: x = (q - zero_point[g]) * scale[g].
//
// x and q are [groups, n], scale and zero_point [groups]; fp32, each operation rounded once, rint to even; q is (u)int8 or
// (u)int16. x is finite, so the clamp may come first. Limit: memory bandwidth. Threads: over pieces of 32 Ki elements.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

enum class Integer : int { i8, u8, i16, u16 };

struct quantize_call {
  std::size_t groups, n;
  int threads;
  bool inverse;              // q -> x
  float* x;                  // [groups, n]
  void* q;                   // [groups, n]
  Integer type;
  const float* scale;        // [groups]
  const float* zero_point;   // [groups]
  float low, high;
};

}  // namespace pycompress
