// nm_mask: of each m consecutive columns of x [rows, columns], fp32, fp16 or bf16, the n of largest magnitude; of equal
// ones those with the higher index (Mishra et al. 2021). A group at the end that is smaller than m keeps n too.
//
// Each magnitude, as the integer of its bits without the sign, is compared with each of its group, in 32 groups at once:
// m (m - 1) / 2 vector comparisons for 32 m elements, which the compiler vectorizes for each level, and no branches.
//
// Limit: for m up to 8 the transposition of the groups, near memory bandwidth; above, the comparisons. Threads: over rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../element.h"

namespace pycompress {

struct nm_mask_call {
  std::size_t rows, columns;
  unsigned n, m;  // 1 <= n < m <= 32
  int threads;
  Element type;
  const void* x;      // [rows, columns]
  std::int8_t* mask;  // [rows, columns], -1 = kept
  bool* nan;          // result: whether there is a NaN; the mask is then of no use
};

}  // namespace pycompress
