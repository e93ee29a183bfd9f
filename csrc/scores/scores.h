// scores: L1 and L2 norm of each block of a matrix x [rows, columns], in one pass.
//
// The blocks are height x width, smaller at the right and lower edge; a row is a block of 1 x columns, a column one of
// rows x 1. What is summed up is v = |x| (magnitude), |x * g| (Taylor, Molchanov et al. 2019; g [rows, columns] of the
// type of x) or |x| * c[column] (Wanda, Sun et al. 2024):
//     l1[block] = sum of v,   l2[block] = sqrt(sum of v^2)
// v is exact in double precision, where all sums are kept, and the order of additions depends on the sizes alone: the
// same bits on every level and for any number of threads. Blocks of 64 columns and more are summed up in 16 lanes (column
// within the block modulo 16, row after row); narrower ones by columns first, in strips that stay in L1, then from left
// to right. fp32, fp16 and bf16 are read as they lie.
//
// Limit: memory bandwidth, one read of x (and g). Threads: over blocks, or over strips of a row of blocks.
#pragma once

#include <cstddef>

#include "../element.h"

namespace pycompress {

struct scores_call {
  std::size_t rows, columns, height, width;  // height and width at least 1
  int threads;
  Element type;
  const void* x;        // [rows, columns]
  const void* g;        // [rows, columns], or null
  const float* factor;  // [columns], or null
  float* l1;            // [ceil(rows / height), ceil(columns / width)]
  float* l2;            // the same
};

}  // namespace pycompress
