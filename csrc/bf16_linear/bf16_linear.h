// bf16_linear: y = activation(x . w^T + bias), a sparse weight in bfloat16 with a mask of its zeros, sums in fp32.
//
// Formula: x is rounded to bfloat16 (to nearest, ties to even; a magnitude below 2^-126 becomes 0), each product is added in
// fp32, then + bias and the activation. Pruned weights are multiplied as zeros: with infinity or NaN in x they give NaN.
//
// The order of sums is that of a level, never of threads or of how a batch is cut: one chain in ascending order of inputs,
// of fused multiply-adds (AVX2, AVX-512, NEON: the same bits) or of products and sums apart (scalar); on AMX pairs of
// inputs, and even and odd ones of 32 inputs apart, for 1 row as for many. Against the exact sum of the rounded numbers
// the error is at most 2 * in * 2^-24 * sum|x w|; rounding itself changes each product by up to 2^-7 of it.
//
// Layout: panels of 32 outputs; [panel][in] a mask of 32 bits, bit o: the weight of output o is not zero; the nonzero
// weights of a panel follow each other, by inputs, then by outputs. 2 bytes a nonzero and 1 bit a weight: at 50 % zeros
// 0.56 of the bytes of dense bfloat16 and 0.28 of fp32, at 90 % half of what unstructured fp32 (sparse_linear) holds.
//
// Threads: over panels, and over rows where there are too few of them. Cost: in*out*(density*16+1)/8 bytes, read and
// expanded once for up to 128 rows (512 on AMX); rows*in*out multiply-adds, zeros too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

constexpr std::size_t bf16_panel = 32;  // outputs in a panel

struct bf16_weight {
  std::size_t out_features, in_features;
  std::size_t panels;            // ceil(out / 32)
  const std::uint32_t* masks;    // [panels][in]
  const std::size_t* starts;     // [panels + 1]: first value of each panel
  const std::uint16_t* values;   // nonzeros; 64 bytes more may be read
  const float* bias;             // [panels * 32], zeros without a bias
};

struct bf16_linear_call {
  const bf16_weight* weight;
  std::size_t rows;
  int threads;
  int activation;   // as in activation.inc
  const float* x;   // [rows, in]
  float* y;         // [rows, out]
};

}  // namespace pycompress
