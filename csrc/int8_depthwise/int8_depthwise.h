// int8_depthwise: y[n, i, j, c] = activation(float(sum of q_x . q_w over the kernel) * (s_x[n] * s_w[c]) + bias[c]).
//
// A convolution in which each channel has a kernel of its own, on images [images][height][width][channels]; formula,
// padding and scales of images are those of int8_conv, int8 images those of ../int8_linear/images.inc.
//
// Vectors run along the channels, a block of deep_lanes at a time. For one row of output pixels, the rows of the image
// that its kernel meets are woven into columns once, T of them in a lane (T = 4 bytes with VNNI, 2 int16 else): a lane
// times T weights is one multiply-add, and a column serves all kernel columns. With T = 4, three rows of 64 channels are 8
// shuffles and 4 stores for each column, and 4 vpdpbusd for each kernel column of an output.
//
// Weight: [blocks of channels][kernel columns][kernel rows / T][deep_lanes * T], then the sums' start for each channel.
// Threads: over output rows and blocks of channels. Cost: the image is read kernel height / stride times, from L2.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../int8_linear/int8_linear.h"

namespace pycompress {

struct int8_depthwise_weight {
  std::size_t channels;
  std::size_t kernel[2], stride[2], dilation[2];  // height, width
  std::size_t top, left;                          // padding
  const void* packed;                             // what the kernel made of the weight
  const float* scale;                             // [channels, in whole blocks of 64]
  const float* bias;                              // [channels, in whole blocks of 64], zeros without a bias
  float input_scale;                              // 0: dynamic, per image
};

struct int8_depthwise_call {
  const int8_depthwise_weight* weight;
  // Packing: `weight` has its sizes; only *bytes is set where `to` is null.
  const std::int8_t* from;  // [channels, kernel height, kernel width]
  void* to;
  std::size_t* bytes;
  // Running, where `bytes` is null.
  std::size_t images, height, width, out_height, out_width;
  int threads, activation;
  const float* x;        // [images, height, width, channels], or null
  const std::int8_t* q;  // instead of x
  Output output;         // f32 or i8
  void* y;               // [images, out height, out width, channels]
  float output_scale;    // of int8 outputs
};

}  // namespace pycompress
