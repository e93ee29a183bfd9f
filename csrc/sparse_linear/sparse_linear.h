// sparse_linear: y = activation(x . w^T + bias), fp32, only the stored weights are multiplied.
//
// Each result is one chain of fused multiply-adds over the stored weights of an output in ascending order of inputs,
// then + bias: the same bits for any number of threads and for any cut of the batch (on the levels with FMA also across
// levels).
//
// Blocks: `height` outputs (1, 4, 8 or 16) form a group that shares its columns; a column is kept where one of them has a
// weight, with a zero for the others. So 16x16 blocks are groups of 16 outputs with 16 columns each. Zeros inside a kept
// block are multiplied: the same numbers for finite activations.
//
// Layout: outputs in tiles of `tile` (at most 256), inputs in blocks of 256, so that an entry is a u8 column and
// `height` fp32 values. Inside a (tile, block) the groups that have entries are sorted by their count; `runs` say how many
// groups have which count, `outputs` (u8, the first of each group inside the tile) in which order they come, and columns and
// values [entry][height] follow in that order, each group's entries together: one sequential stream without a branch that
// is hard to predict. Several groups of one run are computed at a time.
//
// A few rows of a weight without groups, AVX-512, from 60 % zeros on: its weights are held a second time, as sparse_steps.
//
// Activations: panels of 8 to 64 rows, transposed to [in][rows of the panel]; a single row is used as it is. Between the
// layers of a chain they stay so: the sums of one layer are the panels of the next.
//
// Lost, on Zen 4 at 80 % zeros and 128 rows (times of the whole call):
// - A group's sums kept in registers over 1024 inputs instead of 256: 1.02 to 1.2 times as long. Fewer sums are stored and
//   loaded, but the lines of 1024 inputs come from L2, and the values of a group do not follow each other.
// - 8 outputs x 2 lines of a group at a time, instead of 4 x 4: 1.0 to 1.01. Tiles of 128 outputs for groups: 0.98 to 1.03.
// - Fetching values ahead for single outputs, as groups do (blocks.inc): 1.02 to 1.03, for one more load in 10.
// - Writing 16 outputs of all rows of y at a time: 1.03 to 1.06. Fetching the lines of y while sums are computed: 1.0.
//   What takes time are rows of y that are a multiple of 4 KiB apart, not memory.
// - Panels of 8 rows: 8 outputs at a time, or values brought to all lanes by vpermps instead of a load for each: 1.0. Both,
//   0.92 at 90 to 98 %; not taken, since GCC 12 computed wrong sums from it with -fsanitize=shift (at -O3; right ones else).
// - 64 rows x 8 columns at a time into panels, instead of 8 rows x 64: 1.05 to 1.14 with 3072 inputs.
//
// Threads: over tiles and panels; one thread goes panel by panel. Cost: 5 bytes and 2 * rows operations for a stored weight;
// as a step 5 to 6.5 bytes (70 to 95 % zeros).
// Sources: sorted slices, Kreutzer et al. 2014 (SELL-C-sigma); panels: merge of CSB (Buluc et al. 2009) blocking.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

constexpr std::size_t sparse_block = 256;  // inputs in a block

struct sparse_part {  // one (tile, block)
  std::uint32_t run, run_end;   // in runs
  std::uint32_t output;         // first in outputs
  std::uint64_t entry;          // first in columns; in values times height
};

struct sparse_run {
  std::uint16_t count;          // entries of each of its groups
  std::uint16_t groups;
};

// The weights for a few rows: panels of 32 outputs, each as steps in ascending order of inputs. A step holds at most one
// weight of an output, of inputs among the 32 from its first one on, a multiple of 8.
constexpr std::size_t sparse_panel = 32, sparse_window = 32, sparse_step_align = 8;
constexpr std::size_t sparse_steps_group = 6, sparse_place_bits = 5;

struct sparse_steps {
  std::size_t panels;            // ceil(out / 32)
  std::size_t steps;
  const std::size_t* starts;     // [panels + 1]: first step of a panel, a multiple of 6
  const std::size_t* firsts;     // [panels]: first of its values
  const std::uint16_t* inputs;   // [steps]: first input / 8
  const std::uint32_t* masks;    // [steps]: which outputs have a weight in the step
  const std::uint32_t* places;   // [steps / 6][32 outputs]: input - first input in step k of six, from bit 5 k on
  const float* values;           // [weights] by steps, then outputs
};

template <class Value>
struct sparse_weight_of {
  std::size_t out_features, in_features;
  std::size_t stored;           // values, zeros inside groups too
  std::size_t height;           // outputs of a group: 1, 4, 8 or 16
  std::size_t tile, tiles, blocks;
  const sparse_part* parts;     // [tiles][blocks]
  const sparse_run* runs;
  const std::uint8_t* outputs;
  const std::uint8_t* columns;
  const Value* values;          // [entries][height]
  const float* bias;            // [out], zeros without a bias
  const sparse_steps* steps = nullptr;  // the same weights, or none
};

using sparse_weight = sparse_weight_of<float>;
using sparse_words = sparse_weight_of<std::uint32_t>;  // an input is four int8 values: see ../int8_conv/int8_conv.h

struct sparse_linear_call {     // layers one after the other
  const sparse_weight* const* weights;  // each takes as many features as the one before gives
  const int* activations;       // as in activation.inc
  std::size_t layers;           // at least 1
  std::size_t rows;
  int threads;
  const float* x;               // [rows, in of the first]
  float* y;                     // [rows, out of the last]
};

}  // namespace pycompress
