// int4_linear: y = activation(x . w + bias) with 4-bit weights, w = (q - z) * s, one s (and z) for each output and group of
// `group` inputs.
//
// q is a code of 0..15, z the zero point of the group, or 8 for all. Three forms, chosen when the weight is packed:
//
// float activations: y = sum over groups of s_g * (sum over the group of (q - z) * x), then + bias and the activation. fp32:
//   the sum of a group is a chain of multiply-adds in the order of the inputs, and the sum of the groups one in their order,
//   so that a result depends neither on the threads nor on the rows beside it. (q - z) * s is exact in fp32.
// int8 activations: rows are quantized as by int8_linear (int8_linear.h). A_g = the exact int32 sum of a group, below 2^18, so
//   that float(A_g) is exact; then t = 0; for each group in order t = t + float(A_g) * s_g; y = t * s_x + bias; activation;
//   every operation rounded once: the same bits on every level.
// integer group scales: the weight is the int8 weight (q - 8) * m_g, m_g from 1 to 15, of int8_linear, and so is the formula.
//
// Layout: panels of 32 outputs, each one sequential stream
//   [panel][in/8][32 outputs][4 bytes],
// where the low half of byte k is the code of input k, and the high half that of input k + 4. So 64 bytes are 16 outputs x 8
// inputs: masked, and shifted and masked, they are two VNNI operands of 4 inputs; and as 32-bit words they are the indices
// that vpermps looks floats up by. `in` is padded to 8, outputs to 32. Scales are [panel][group][32], fp16.
//
// Threads: over panels and blocks of rows.
// Cost: out*in/2 bytes of codes and 2*out*in/group of scales, read once for a block of rows.
// Source: group-wise scales as in GPTQ (Frantar et al. 2022, arXiv:2210.17323); integer group scales under one scale for each
// output: QServe (Lin et al. 2024, arXiv:2405.04532).
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

constexpr std::size_t int4_panel = 32;  // outputs in a panel

struct int4_weight {
  std::size_t out_features, in_features;
  std::size_t panels;            // ceil(out / 32)
  std::size_t octets;            // ceil(in / 8)
  std::size_t groups;            // ceil(in / group)
  std::size_t group_octets;      // octets in a group; the last one may have fewer
  const std::uint8_t* codes;     // [panels][octets][32][4]
  const std::uint16_t* scale;    // [panels][groups][32] fp16; null with multipliers
  const std::uint8_t* zero;      // [panels][groups][32]; null: 8
  const std::uint8_t* multiplier;   // [panels][groups][32], 1 to 15; or null
  const std::int64_t* sums;      // with multipliers: [panels * 32], sum of (q - 8) * m
  const float* channel_scale;    // with multipliers: [panels * 32]
  const float* bias;             // [panels * 32], zeros without a bias
  bool int8_activations;
  float input_scale;             // of int8 activations; 0: dynamic
};

struct int4_linear_call {
  const int4_weight* weight;
  std::size_t rows;
  int threads;
  int activation;   // as in activation.inc
  const float* x;   // [rows, in]
  float* y;         // [rows, out]
};

}  // namespace pycompress
