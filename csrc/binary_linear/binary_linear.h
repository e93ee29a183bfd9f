// binary_linear: y = activation(float(in - 2 * d) * (K * alpha[o]) + bias[o]), the product of signs.
//
// d = the number of inputs whose sign differs from that of the weight: the popcount of bits x bits, exact. The sign of 0 (and
// of -0) is +. K = the mean of |x| over the row, in fp64 with 16 partial sums (sum l takes inputs l, l + 16, ... in their
// order; then l += l + 8, l + 4, l + 2, l + 1), divided by `in` and rounded to fp32: the same bits on every level. The rest is
// the formula of int8_linear with K in the place of the row's scale. A row that holds NaN or infinity gives NaN.
//
// Layout: panels of 32 outputs, each one sequential stream
//   [panel][in/64][32 outputs] of 64-bit words,
// bit i of a word = weight of input i is +1. A row is [in/64] words likewise; one of its words meets a register of outputs, so
// that no sum goes across lanes. What `in` is padded with is 0 on both sides and differs nowhere.
//
// Threads: over panels and blocks of rows; rows become bits first.
// Cost: out*in/8 bytes read once for a block of rows; rows*in*out/64 words.
// Source: Rastegari et al. 2016 (XNOR-Net, arXiv:1603.05279).
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

constexpr std::size_t binary_panel = 32;  // outputs in a panel

struct binary_weight {
  std::size_t out_features, in_features;
  std::size_t panels;           // ceil(out / 32)
  std::size_t words;            // ceil(in / 64)
  const std::uint64_t* bits;    // [panels][words][32]
  const float* scale;           // [panels * 32]
  const float* bias;            // [panels * 32], zeros without a bias
};

struct binary_linear_call {
  const binary_weight* weight;
  std::size_t rows;
  int threads;
  int activation;   // as in activation.inc
  const float* x;   // [rows, in]
  float* y;         // [rows, out]
};

}  // namespace pycompress
