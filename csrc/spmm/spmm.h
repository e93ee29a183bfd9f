// spmm: y = a . b, a sparse in compressed rows (CSR), b and y dense; fp32 or fp64.
//
// Each result is one chain of fused multiply-adds over the stored entries of a row in stored order, from zero: the same
// bits for any number of threads and any cut of rows or columns (on the levels with FMA also across levels; the scalar
// level rounds product and sum apart). Entries may repeat a column and come in any order.
//
// Layout: CSR, with columns as u16 where there are at most 65 536 of them: 6 instead of 8 bytes for an fp32 entry, which
// is what a product with one column is limited by. Inside windows of 1024, rows lie sorted by falling count of entries,
// and each 8 of them (not the last rows % 8) form a group: first the n-th entries of all its rows side by side, as long
// as all have one, then what is left of each row. So rows that are computed side by side end together and are read as
// one stream; for one column of b a group is a vector. The sums of a tile of columns of y stay in registers while rows
// of b are streamed, several rows of a at a time: one chain alone would wait for each addition. Tiles are so narrow that
// their part of b stays in L2; where b is reused often, its tiles are copied first, so that each lies together and on
// cache lines.
//
// Source: sorted slices, Kreutzer et al. 2014 (SELL-C-sigma).
// Threads: over tiles and ranges of groups that hold about as many entries each.
// Cost: 2 * columns operations for a stored entry, which is read once for each tile.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

constexpr std::size_t spmm_group = 8;

// For the group at `row`: how many entries all of its rows have, and where what is left of its row o begins; that of
// row o + 1 follows.
inline std::size_t spmm_common(const std::uint64_t* starts, std::size_t row) {
  return starts[row + spmm_group] - starts[row + spmm_group - 1];
}
inline std::size_t spmm_rest(const std::uint64_t* starts, std::size_t row, std::size_t o, std::size_t common) {
  return starts[row + o] + (spmm_group - o) * common;
}

struct spmm_call {
  std::size_t rows;             // of a, whole groups or up to its end
  std::size_t inner;            // columns of a, rows of b
  std::size_t columns;          // of b and y
  std::size_t stride;           // elements between two rows of b, and of y
  int threads;
  bool is_double;               // values, b and y are fp64, else fp32
  bool wide;                    // columns of entries are u32, else u16
  const std::uint64_t* starts;  // [rows + 1], into indices and values, of rows as they lie
  const std::uint32_t* order;   // [rows], which row of y each of them is
  const void* indices;
  const void* values;
  const void* b;
  void* y;
};

}  // namespace pycompress
