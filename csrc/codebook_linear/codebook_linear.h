// codebook_linear: y = activation(x . w + bias) with weights of 1, 2 or 4 bits that stand for int8 numbers of one table,
// w = table[code] * s.
//
// Rows are quantized as by int8_linear (int8_linear.h). Two forms, chosen when the weight is packed:
//
// group scales (Codebook, 2 or 4 bits): one s for each output and group of inputs. A_g = the exact int32 sum of a group, at
//   most 128 * 127 * 127 < 2^24, so that float(A_g) is exact; then t = 0; for each group in order t = t + float(A_g) * s_g;
//   y = t * s_x + bias; activation; every operation rounded once: the same bits on every level.
// channel scales (Binary, 1 bit: table -1, 1): one s for each output; the formula is that of int8_linear. Sums are int32:
//   exact up to 2^24 inputs, which nothing reaches.
//
// Why one table for the tensor, and not one for each output: a byte shuffle looks 64 codes of 16 outputs up at once only
// where they share it. What single outputs need, the scales of their groups give.
//
// Layout: panels of 32 outputs, each one sequential stream
//   [panel][strip][32 outputs][4 bytes],
// where bits j * b .. j * b + b - 1 of byte k are the code of input k + 4 j of the strip, which has 32 / b inputs. So 64 bytes,
// shifted, masked and looked up, are 8 / b VNNI operands of 16 outputs x 4 inputs, lines of int8_linear. `in` is padded to
// 32 / b (activations are 0 there), outputs to 32. Scales are [panel][group][32], fp16.
//
// Threads: over panels and blocks of rows.
// Cost: out * in * b / 8 bytes of codes and 2 * out * in / group of scales, read once for a block of rows.
// Sources: weights that share values, from k-means: Han et al. 2016 (Deep Compression, arXiv:1510.00149); one table under
// scales of groups: Dettmers et al. 2023 (QLoRA, arXiv:2305.14314); 1 bit: Rastegari et al. 2016 (XNOR-Net, arXiv:1603.05279).
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

constexpr std::size_t codebook_panel = 32;      // outputs in a panel
constexpr std::size_t codebook_section = 256;   // inputs that are summed at a time with channel scales

struct codebook_weight {
  std::size_t out_features, in_features;
  int bits;                     // 1, 2 or 4
  std::size_t panels;           // ceil(out / 32)
  std::size_t strips;           // ceil(in / (32 / bits))
  std::size_t groups;           // ceil(in / group)
  std::size_t group_strips;     // strips in a group (or section); the last one may have fewer
  const std::uint8_t* codes;    // [panels][strips][32][4]
  const std::int8_t* table;     // [16]: 2^bits numbers, and again until there are 16
  const std::uint16_t* scale;   // [panels][groups][32] fp16, or null
  const float* channel_scale;   // instead: [panels * 32]
  const float* bias;            // [panels * 32], zeros without a bias
  float input_scale;            // 0: dynamic
};

struct codebook_linear_call {
  const codebook_weight* weight;
  std::size_t rows;
  int threads;
  int activation;   // as in activation.inc
  const float* x;   // [rows, in]
  float* y;         // [rows, out]
};

}  // namespace pycompress
