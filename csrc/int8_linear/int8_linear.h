// int8_linear: y = activation(float(q_x . q_w) * (s_x * s_w) + bias), and the exact integer product.
//
// Formula, all in fp32, each operation rounded once, ties to even. Per row of x: m = max|x|; q = clamp(rint(x * (127/m)),
// -127, 127); y = float(sum) * ((m/127) * s_w[o]) + bias[o] (+ residual); then the activation. A row with m < 2^-100
// counts as zeros. With a static input scale s: q = clamp(rint(x * (1/s)), -127, 127), and s in the place of m/127. A row
// that holds NaN or infinity gives NaN. The integer mode takes q itself, any int8, and gives the sums.
//
// Layout of the weight, one for all levels: panels of 32 outputs, each one sequential stream
//   [panel][in/64][2 tiles][16 groups of 4 inputs][16 outputs x 4 inputs],
// where the last block has only the groups that `in`, padded to 4, needs. A 64-byte line is a VNNI operand, or
// four operands of Arm's sdot, and 16 lines are an AMX B tile. Outputs are padded with zeros to 32.
//
// Sparse weights, the same numbers from fewer bytes (int8_sparse): only the lines that hold a weight, with a list of their
// groups for each strip of 16 or 32 outputs (blocks of 16x4, 32x4 and 32x64, outputs x inputs); or, for zeros without a
// pattern, a mask of 64 bits for each line and its nonzero bytes. sparse.inc says how they are multiplied, amx_forms.inc
// how on AMX.
//
// Chains: between two layers the activations never leave the cache; where the next layer has a static scale they are
// requantized at once. The numbers are those of the layers called one after the other.
//
// Sums are exact for any `in`: int32 inside a chunk of 131 008 inputs (2^14 * 131 008 < 2^31), int64 beyond one.
// Threads: over panels and rows; rows are quantized first, outside the loop over outputs.
// Cost: out*in bytes read once for up to max_rows rows, rows*in*out multiply-adds.
// Source of the dynamic scheme: Jacob et al. 2018 (arXiv:1712.05877), symmetric.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

constexpr std::size_t int8_panel = 32;           // outputs in a panel
constexpr std::size_t int8_sum_chunk = 131008;   // inputs whose products fit into int32 for sure; multiple of 64

// What is kept of a sparse weight. Groups are counted from the start of their chunk of int8_sum_chunk inputs.
struct int8_sparse {
  std::size_t height;            // of kept lines, outputs of a strip: 16 or 32; else int8_bitmap or int8_steps
  std::size_t chunks;            // of int8_sum_chunk inputs
  bool whole_tiles;              // height 32: groups are kept by 16, from a multiple of 16 on (to the end of `in`)
  double density;                // work by that of the dense weight: kept lines by all lines; 1 of a bitmap
  const std::size_t* starts;     // [strips or, of a bitmap and steps, panels][chunks] + 1: first kept group, value or step
  const std::uint16_t* groups;   // [kept groups], or [steps] first input / int8_step_align
  const std::uint64_t* masks;    // of a bitmap: [panels][groups][2 tiles], bit b: byte b of the line is not 0
  const std::int8_t* values;     // [kept groups][height / 16] lines, nonzero bytes in the order of the masks, or steps
};

constexpr std::size_t int8_bitmap = 0;
// Steps of a panel, 4 weights of each of its 32 outputs, all of inputs among the 64 from the step's first one on, a multiple of
// int8_step_align; 0 where an output has no more of them there. Two steps by two:
//   [2 steps][64] low bits and [64] high bits of where their inputs are, [2 steps][2 tiles][16 outputs x 4] weights.
constexpr std::size_t int8_steps = 1, int8_step_align = 16, int8_step_pair = 448;

// A weight of a step: bytes of its pair, and the shifts of its place (input - first input of the step) in two of them. The low
// four bits of both tiles share a byte; with the high two of tile 1 in the byte before, a rotation brings them beside.
struct int8_step_slot {
  std::size_t weight, low, high;
  unsigned low_shift, high_shift;

  constexpr std::size_t place(const std::int8_t* pair) const {
    return static_cast<std::size_t>((static_cast<std::uint8_t>(pair[low]) >> low_shift & 15) |
                                    (static_cast<std::uint8_t>(pair[high]) >> high_shift & 3) << 4);
  }
};

// Weight k of 4 of an output in [0, 32), of the first or the second step of a pair.
constexpr int8_step_slot step_slot(std::size_t step, std::size_t output, std::size_t k) {
  const std::size_t tile = output / 16, byte = output % 16 * 4;
  return {192 + step * 128 + tile * 64 + byte + k, step * 64 + byte + k, 128 + byte + (k + tile) % 4,
          tile == 0 ? 0u : 4u, static_cast<unsigned>(2 * step) + (tile == 0 ? 4u : 0u)};
}

struct int8_weight {
  std::size_t out_features, in_features;
  std::size_t panels;         // ceil(out / 32)
  std::size_t groups;         // ceil(in / 4)
  const std::int8_t* data;    // panels * groups * 128 bytes
  const std::int32_t* sums;   // [chunks of in][panels * 32]: sum of the weights, the compensation of unsigned kernels
  const float* scale;         // [panels * 32]
  const float* bias;          // [panels * 32], zeros without a bias
  float input_scale;          // 0: dynamic
  const int8_sparse* sparse = nullptr;  // instead of data
};

enum class Output : int { f32, bf16, i8 };

constexpr std::size_t output_bytes(Output type) { return type == Output::f32 ? 4 : type == Output::bf16 ? 2 : 1; }

// From sums to int8 outputs: y = min(max(lowest, float(sum) * (row_scale * scale) + bias), highest), times factor.
struct Epilogue {
  float row_scale;
  const float *scale, *bias;
  float lowest, highest, factor;
};

// Rows that are patches of images [images, height, width, channels], for a convolution: row (n, i, j) holds the window of
// output pixel (i, j) of image n, [kernel height][kernel width][channels], with zeros outside of the image.
struct int8_patches {
  std::size_t images, height, width, channels;
  std::size_t kernel[2], stride[2], dilation[2];  // height, width
  std::size_t top, left;                          // padding
  std::size_t out_height, out_width;

  bool is_inside(std::size_t i, std::size_t j) const {  // the window lies in the image and has no holes in its lines
    const std::size_t y = i * stride[0], x = j * stride[1];
    return dilation[1] == 1 && y >= top && x >= left && y - top + (kernel[0] - 1) * dilation[0] < height &&
           x - left + kernel[1] <= width;
  }

  bool is_pointwise() const {  // and row r is pixel r
    return kernel[0] * kernel[1] * stride[0] * stride[1] == 1 && out_height == height && out_width == width;
  }
};

// A chain of one or more layers; the last one has out_features outputs.
struct int8_linear_call {
  const int8_weight* const* weights;  // [layers]
  const int* activations;             // [layers], as in activation.inc
  std::size_t layers;
  std::size_t rows;
  int threads;
  const float* x;           // [rows, in], or null
  const std::int8_t* q;     // instead of x: [rows, in], by the first layer's input scale, or in integer mode as it is
  Output output;
  void* y;                  // [rows, out]
  float output_scale;       // of int8 outputs: clamp(rint(y * (1 / output_scale)), -127, 127), NaN gives 0
  const float* residual;    // [rows, out], added before the last activation, or null
  std::int32_t* product;    // integer mode (one layer): [rows, out], the sums themselves
  const int8_patches* patches;  // or null. Of one layer: x or q are images, quantized with one scale each (images.inc)
  bool* overflow;           // integer mode: set when a sum does not fit into int32
};

}  // namespace pycompress
