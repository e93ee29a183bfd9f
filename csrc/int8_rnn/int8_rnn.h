// int8_rnn: the recurrent part of LSTM and GRU over a sequence; the input part x W_ih^T + b_ih of all steps is one call of
// int8_linear before it.
//
// Formula, all in fp32, each operation rounded once, ties to even. Each row of h is quantized in every step like a row of
// x in int8_linear.h; u = float(q_h . q_w) * ((m/127) * s_w[o]) + b_hh[o]; v is the input part. Then, with sigmoid and
// tanh of activation.inc and torch's order of gates,
//   LSTM (i, f, g, o):  i = sigmoid(u_i + v_i), f, o likewise, g = tanh(u_g + v_g); c' = f * c + i * g (a product, a
//                       product, their sum); h' = o * tanh(c'); a projection is int8_linear of that h',
//                       without a bias
//   GRU (r, z, n):      r = sigmoid(u_r + v_r), z likewise, n = tanh(r * u_n + v_n); h' = (h - n) * z + n
// A row of x or of the state that holds NaN or infinity gives rows of NaN from there on; c may hold infinity.
//
// Layout: the recurrent weight is an int8_weight whose panels are [blocks of 32 hidden units][gates in the order i, f, o, g
// or r, z, n], units padded to 32: the gates of 32 units are neighbours in memory, and their element-wise part happens on
// sums that are still in the L1 cache. Weights of which at least half of the lines are zero are kept sparse, as int8_linear.h
// says: the numbers are the same. The input part keeps torch's order, [rows][gates * hidden].
//
// Sequences of several lengths are packed as torch packs them: step t holds the rows of the batch [0, starts[t+1] -
// starts[t]), which never grow with t. Backwards, the steps run from the last to the first.
// Threads: over blocks of units and rows inside a step; a step below the threshold of chunk_count stays on one thread.
// Cost of a step: gates*hidden*out bytes read once for up to max_rows rows.
// Source: Hochreiter and Schmidhuber 1997; Cho et al. 2014 (arXiv:1406.1078) in torch's form.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../int8_linear/int8_linear.h"

namespace pycompress {

enum class Cell : int { lstm, gru };

constexpr std::size_t gate_count(Cell cell) { return cell == Cell::lstm ? 4 : 3; }

struct int8_rnn_call {
  Cell cell;
  std::size_t hidden;
  const int8_weight* recurrent;   // bias: b_hh
  const int8_weight* projection;  // [out, hidden], or null: out = hidden
  std::size_t steps;
  const std::size_t* starts;      // [steps + 1]: first row of each step
  bool backwards;
  int threads;
  const float* input;             // [rows, gates * hidden]; row 0 is the row starts[0] of y
  float* h;                       // [batch, out], the state: read and written
  float* c;                       // [batch, hidden], LSTM
  float* y;                       // row r of the sequence at y + r * y_stride
  std::size_t y_stride;
};

}  // namespace pycompress
