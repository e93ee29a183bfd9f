// limits: what this CPU can do at most, for the share of it that a benchmark reports; no part of the library calls it.
//
// int8: multiply-adds of int8 values in registers, as many independent ones as hide their latency, in the instruction
// that the int8 kernels of the level multiply with. fp32: the same with fused multiply-adds. read: `bytes` of data are
// read from where they lie, in order. Threads: each does its own `steps`, or reads its own part.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

enum class Limit : int { int8, fp32, read };

struct limits_call {
  Limit limit;
  std::size_t steps;         // of a dozen multiply-adds, or passes over the data
  const std::uint8_t* data;  // [bytes], read alone
  std::size_t bytes;         // a multiple of 64 * 8
  int threads;
  double* done;              // operations (a multiplication and an addition are two), or bytes
};

}  // namespace pycompress
