// int8_conv: y[n, o, i, j] = activation(float(sum of q_x . q_w over the kernel) * (s_x[n] * s_w[o]) + bias[o]).
//
// The formula is that of int8_linear, where a row is an image: m = max|x[n]| over its channels and pixels, or a static
// input scale. Padding is zero. An image that holds NaN or infinity gives NaN. Sums are exact for any kernel.
//
// x and y are NCHW, and nothing is transposed. Quantized activations are kept in lanes of 32 bits that lie in the order
// of the pixels, so that vectors run along a row of the image:
//   dense and grouped: 4 channels of a pixel in a lane, [ceil(C / 4)][padded height][padded width]. For 32 output
//     pixels, the lanes of each tap are 128 bytes in a row: what int8_linear has as a line of weights. The micro-kernels
//     are those of int8_linear with the parts exchanged: pixels are its outputs, output channels are its rows, and
//     the weight is kept as activations are ([outputs][K], K = channel quad, kernel row, kernel column, channel in quad).
//     No im2col: the lanes of one panel of 32 pixels are gathered into a buffer of 32 * K bytes when they are needed.
//   depthwise (one channel a group): T kernel rows of a pixel in a lane (T = 4 bytes with VNNI, else 2 int16), so that a
//     lane times a word of T weights is one multiply-add of 16 pixels: lane(r) = lane(r - dilation) << 32 / T | q(r).
// With a horizontal stride s the columns of a row are kept in s phases, so that those of one tap lie side by side.
//
// Sparse weights: words of four channels (at one place of the kernel) that are zero are skipped, per output, or with
// blocks per 16 outputs: see sparse.inc. At 90 % zeros in no pattern 34 % of the words are left. Blocks of 4 inputs are
// words in 1x1 convolutions; where the kernel is larger they lie across four words. At most 2^16 products a sum.
//
// Threads: over channels while quantizing, then over panels of pixels and blocks of outputs; depthwise over planes.
// Cost: C*H*W quantized once; pixels * K * outputs multiply-adds, K padded to 4 channels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../int8_linear/int8_linear.h"
#include "../sparse_linear/sparse_linear.h"

namespace pycompress {

struct int8_conv_weight {
  std::size_t channels, outputs, groups;
  std::size_t kernel[2], stride[2], dilation[2];  // height, width
  std::size_t padding[4];                         // top, bottom, left, right
  const void* packed;                             // what the kernel made of the weight, or null with
  const sparse_words* const* words;               // [groups]: [outputs / groups, quads of channels * kernel], or null
  const std::uint32_t* const* used;               // [groups][words of an output + 1]: how many any output has, and which
  std::size_t stored;                             // words of all groups
  const std::int32_t* excess;                     // [outputs]: with words, 128 * the sum of an output's weights
  const float* scale;                             // [outputs]
  const float* bias;                              // [outputs], zeros without a bias
  float input_scale;                              // 0: dynamic, per image
};

struct int8_conv_call {
  const int8_conv_weight* weight;
  // Packing: `weight` has its sizes; only *bytes is set where `to` is null.
  const std::int8_t* from;  // [outputs, channels / groups, kernel height, kernel width]
  void* to;
  std::size_t* bytes;
  // Running, where `from` is null; the padded image is at least as large as the kernel and has fewer than 2^31 lanes.
  std::size_t images, height, width;
  int threads, activation;
  const float* x;  // [images, channels, height, width]
  float* y;        // [images, outputs, out height, out width]
};

}  // namespace pycompress
