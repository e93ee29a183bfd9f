// sparse_conv: y[n, o, i, j] = activation(sum over the stored weights of w[o, c, k, l] * x[n, c, i*s+k*d-p, j*s+l*d-p]
// + bias[o]), fp32. Padding is zero; groups of channels are convolved apart.
//
// Each result is the chain of fused multiply-adds of sparse_linear, over the stored weights of an output in ascending
// order of (channel, kernel row, kernel column), then + bias: the same bits for any number of threads and images.
//
// The weight is that of sparse_linear.h, [outputs, channels * kernel height * kernel width], one for each group. x and y
// are NCHW and nothing is transposed. A padded copy of the channels has rows of the width that a row of outputs needs,
// so that the outputs of an image are `flat` consecutive positions (some between the rows are no outputs, and are not
// written), and what 64 consecutive ones need for a weight are 64 consecutive floats at the position + a number of that
// weight's column: the offset table. With a stride s the copy has s * s phases, so that this holds for every stride.
// Per image: C * H * W floats copied once. No im2col: it has kernel height * kernel width times as many.
//
// One weight a channel (1x1): nothing is shared between columns, so that 64 positions of all channels are copied side by
// side when they are needed, straight from x where stride and padding allow. (Read where they lie, a plane apart, they
// take 1.2 to 1.6 times as long at 256 channels of 56 x 56 and single weights: a page for each.)
//
// Lost, on Zen 4 (64 -> 64 at 56 x 56, 128 at 28, 256 at 14; 3 x 3): gathering 64 output positions of every column as
// 1x1 does takes 0.9 to 1.1 times as long at 70 and 80 % zeros and 1.1 to 1.4 at 90 %, 1.2 to 1.5 with blocks of 4
// outputs; panels of 32 positions 1.1 to 1.4; rows padded to a multiple of a cache line 0.9 to 1.2 for more memory.
//
// Threads: over channels while copying, then over images, panels of 64 positions and tiles of outputs.
// Cost: 5 bytes and 2 * positions operations for a stored weight. Source: Park et al. 2017, direct sparse convolution.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../sparse_linear/sparse_linear.h"

namespace pycompress {

struct sparse_conv_weight {
  std::size_t channels, outputs, groups;
  std::size_t kernel[2], stride[2], dilation[2];  // height, width
  std::size_t padding[4];                         // top, bottom, left, right
  const sparse_weight* const* weights;            // [groups]: [outputs / groups, channels / groups * kernel]
};

struct sparse_conv_call {
  const sparse_conv_weight* weight;
  std::size_t images, height, width;  // the padded image is at least as large as the kernel, and below 2^31 values
  int threads, activation;
  const float* x;  // [images, channels, height, width]
  float* y;        // [images, outputs, out height, out width]
};

}  // namespace pycompress
