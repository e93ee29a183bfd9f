// scores: the L1 or L2 norm of each row or each column of x [rows, columns] fp32.
//
// Sums are kept in double precision in 16 lanes, the same on every level, and so are the results for any number of
// threads. Limit: memory bandwidth, one read of x. Threads: over rows, or over strips of columns.
#pragma once

#include <cstddef>

namespace pycompress {

struct scores_call {
  std::size_t rows, columns;
  int threads;
  int power;         // 1 or 2
  bool per_column;
  const float* x;    // [rows, columns]
  float* scores;     // [rows] or [columns]
};

}  // namespace pycompress
