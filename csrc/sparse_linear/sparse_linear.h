// sparse_linear: y = activation(x . w^T + bias), fp32, only the stored weights are multiplied.
//
// Each result is one chain of fused multiply-adds over the stored weights of an output in ascending order of inputs,
// then + bias: the same bits for any number of threads and for any cut of the batch (on the levels with FMA also across
// levels).
//
// Layout: outputs in tiles of `tile` (at most 256), inputs in blocks of 256, so that an entry is a u8 column and an fp32
// value. Inside a (tile, block) the outputs that have entries are sorted by their count; `runs` say how many outputs have
// which count, `outputs` (u8, inside the tile) in which order they come, and columns and values follow in that order, each
// output's entries together: one sequential stream without a branch that is hard to predict. Several outputs of one run
// are computed at a time.
//
// Activations: panels of 8 to 64 rows, transposed to [in][rows of the panel]; a single row is used as it is.
// Threads: over tiles and panels. Cost: 5 bytes and 2 * rows operations for a stored weight.
// Sources: sorted slices, Kreutzer et al. 2014 (SELL-C-sigma); panels: merge of CSB (Buluc et al. 2009) blocking.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

constexpr std::size_t sparse_block = 256;  // inputs in a block

struct sparse_part {  // one (tile, block)
  std::uint32_t run, run_end;   // in runs
  std::uint32_t output;         // first in outputs
  std::uint64_t entry;          // first in columns and values
};

struct sparse_run {
  std::uint16_t count;          // entries of each of its outputs
  std::uint16_t outputs;
};

struct sparse_weight {
  std::size_t out_features, in_features, nonzeros;
  std::size_t tile, tiles, blocks;
  const sparse_part* parts;     // [tiles][blocks]
  const sparse_run* runs;
  const std::uint8_t* outputs;
  const std::uint8_t* columns;
  const float* values;
  const float* bias;            // [out], zeros without a bias
};

struct sparse_linear_call {
  const sparse_weight* weight;
  std::size_t rows;
  int threads;
  int activation;               // as in activation.inc
  const float* x;               // [rows, in]
  float* y;                     // [rows, out]
};

}  // namespace pycompress
