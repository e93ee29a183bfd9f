// Adapter of int8_rnn: the input part by int8_linear, then the steps, in pieces of the sequence.
#include <memory>
#include <vector>

#include "../buffer.h"
#include "../int8_linear/pack.h"
#include "../int8_rnn/int8_rnn.h"
#include "../thread_pool.h"
#include "bind.h"

namespace pycompress {
namespace {

constexpr std::size_t piece_bytes = 2 << 20;  // of the input part, about: it should stay in the caches

// Where row o of the packed recurrent weight comes from in torch's order, or -1 for padding: see int8_rnn.h.
std::ptrdiff_t gate_row(Cell cell, std::size_t hidden, std::size_t o) {
  const std::size_t panel = o / int8_panel, gate = panel % gate_count(cell);
  const std::size_t unit = panel / gate_count(cell) * int8_panel + o % int8_panel;
  const std::size_t torch_gate = cell == Cell::lstm && gate > 1 ? 5 - gate : gate;
  return unit < hidden ? static_cast<std::ptrdiff_t>(torch_gate * hidden + unit) : -1;
}

std::vector<float> gathered(Cell cell, std::size_t hidden, std::size_t size, const float* from) {
  std::vector<float> result(size);
  for (std::size_t o = 0; o < size; ++o) {
    const std::ptrdiff_t row = gate_row(cell, hidden, o);
    if (row >= 0) result[o] = from[row];
  }
  return result;
}

std::size_t rows(const Bytes& array) { return static_cast<std::size_t>(array.shape(0)); }
std::size_t columns(const Bytes& array) { return static_cast<std::size_t>(array.shape(1)); }

using Starts = py::array_t<std::size_t, py::array::c_style>;

auto plain(const Bytes& array) {
  return [from = array.data(), in = columns(array)](std::size_t o, std::size_t i) { return from[o * in + i]; };
}

// A weight of which at least half of the lines are zero is kept sparse, and so is one that is few steps: the same numbers, faster at any batch.
template <class At>
Int8Packed fitting(std::size_t out, std::size_t in, At at, Isa level) {
  std::size_t kept[2] = {}, all = 0;  // lines of 16 outputs x 4 inputs that strips of 16 and of 32 outputs keep
  for (std::size_t o = 0; o < out; o += 32) {
    for (std::size_t i = 0; i < in; i += 4, all += 2) {
      bool any[2] = {};
      for (std::size_t j = o; j < std::min(o + 32, out); ++j) {
        for (std::size_t k = i; k < std::min(i + 4, in); ++k) any[(j - o) / 16] |= at(j, k) != 0;
      }
      kept[0] += std::size_t{any[0]} + std::size_t{any[1]};
      kept[1] += any[0] || any[1] ? 2 : 0;
    }
  }
  if (all == 0) return Int8Packed(out, in, at);
  if (2 * kept[0] > all) {
    auto steps = pack_steps(out, in, at, level);
    return steps ? *std::move(steps) : Int8Packed(out, in, at);
  }
  return Int8Packed::sparse(out, in, 20 * kept[1] <= 21 * kept[0] ? 32 : 16, at);
}

class RecurrentState {
 public:
  RecurrentState(Cell cell, const Bytes& input, const Floats& input_scales, const Floats& input_bias,
                 std::optional<float> input_scale, const Bytes& recurrent, const Floats& recurrent_scales,
                 const Floats& recurrent_bias, const std::optional<Bytes>& projection,
                 const std::optional<Floats>& projection_scales, Isa level)
      : cell_(cell),
        hidden_(static_cast<std::size_t>(recurrent.shape(0)) / gate_count(cell)),
        linear_(find<int8_linear_call>(level)),
        kernel_(find<int8_rnn_call>(level)),
        input_(fitting(rows(input), columns(input), plain(input), linear_.isa)),
        recurrent_(fitting((hidden_ + int8_panel - 1) / int8_panel * int8_panel * gate_count(cell), columns(recurrent),
                           [this, from = plain(recurrent)](std::size_t o, std::size_t i) {
                             const std::ptrdiff_t row = gate_row(cell_, hidden_, o);
                             return row < 0 ? std::int8_t{0} : from(static_cast<std::size_t>(row), i);
                           },
                           kernel_.isa)) {
    input_.set(input_scales.data(), input_bias.data(), input_scale.value_or(0.0f));
    const std::size_t size = recurrent_.weight().out_features;
    recurrent_.set(gathered(cell, hidden_, size, recurrent_scales.data()).data(),
                   gathered(cell, hidden_, size, recurrent_bias.data()).data(), 0.0f);
    if (projection) {
      projection_.emplace(fitting(rows(*projection), columns(*projection), plain(*projection), kernel_.isa));
      projection_->set(projection_scales->data(), nullptr, 0.0f);
    }
  }

  py::tuple unpack() const {
    Bytes input({input_.weight().out_features, input_.weight().in_features});
    input_.unpack(input.mutable_data());
    const std::size_t out = recurrent_.weight().out_features, in = recurrent_.weight().in_features;
    std::vector<std::int8_t> packed(out * in);
    recurrent_.unpack(packed.data());
    Bytes recurrent({hidden_ * gate_count(cell_), in});
    for (std::size_t o = 0; o < out; ++o) {
      const std::ptrdiff_t row = gate_row(cell_, hidden_, o);
      if (row >= 0) std::copy_n(packed.data() + o * in, in, recurrent.mutable_data() + static_cast<std::size_t>(row) * in);
    }
    if (!projection_) return py::make_tuple(input, recurrent, py::none());
    Bytes projection({projection_->weight().out_features, projection_->weight().in_features});
    projection_->unpack(projection.mutable_data());
    return py::make_tuple(input, recurrent, projection);
  }

  // x [rows, in] in steps that begin at the rows `starts`; h [batch, out] and c [batch, hidden] are updated, and y [rows, out]
  // is written, whose rows may lie apart.
  void run(const Floats& x, const Starts& starts, Floats& h, Floats& c, py::array_t<float, 0>& y, bool backwards,
           int threads) const {
    const auto steps = static_cast<std::size_t>(starts.size()) - 1;
    const auto y_stride = static_cast<std::size_t>(y.strides(0)) / sizeof(float);
    pieces(x.data(), starts.data(), steps, {h.mutable_data(), c.mutable_data(), y.mutable_data(), y_stride}, backwards, threads);
  }

  // The same by addresses, for steps that all have the whole batch.
  void run_at(std::uintptr_t x, std::size_t steps, std::size_t batch, std::uintptr_t h, std::uintptr_t c, std::uintptr_t y,
              std::size_t y_stride, bool backwards, int threads) const {
    std::vector<std::size_t> starts(steps + 1);
    for (std::size_t t = 0; t <= steps; ++t) starts[t] = t * batch;
    const Results results{reinterpret_cast<float*>(h), reinterpret_cast<float*>(c), reinterpret_cast<float*>(y), y_stride};
    pieces(reinterpret_cast<const float*>(x), starts.data(), steps, results, backwards, threads);
  }

  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const {
    return input_.bytes() + recurrent_.bytes() + (projection_ ? projection_->bytes() : 0);
  }

 private:
  struct Results {
    float *h, *c, *y;
    std::size_t y_stride;
  };

  // Runs the sequence in pieces, between which signals are looked for.
  void pieces(const float* from, const std::size_t* start, std::size_t steps, const Results& results, bool backwards,
              int threads) const {
    const std::size_t in = input_.weight().in_features, out = input_.weight().out_features;
    const std::size_t rows_wanted = std::max<std::size_t>(64, piece_bytes / sizeof(float) / std::max<std::size_t>(out, 1));
    const double per_row = static_cast<double>(out) * static_cast<double>(in + recurrent_.weight().in_features);
    int8_rnn_call call{};
    call.cell = cell_;
    call.hidden = hidden_;
    call.recurrent = &recurrent_.weight();
    call.projection = projection_ ? &projection_->weight() : nullptr;
    call.backwards = backwards;
    call.threads = threads;
    call.h = results.h;
    call.c = results.c;
    call.y = results.y;
    call.y_stride = results.y_stride;
    const double in_time = (kernel_.isa == Isa::scalar ? 2e7 : 5e8) * std::max(1, threads);
    for (std::size_t done = 0; done < steps;) {
      {
        py::gil_scoped_release release;
        for (double work = 0; work < in_time && done < steps;) {
          std::size_t first = backwards ? steps - done - 1 : done, last = first + 1;
          const auto rows_of = [&] { return start[last] - start[first]; };
          while (backwards && first > 0 && rows_of() < rows_wanted) --first;
          while (!backwards && last < steps && rows_of() < rows_wanted) ++last;
          piece(from + start[first] * in, start + first, last - first, call);
          done += last - first;
          work += per_row * static_cast<double>(rows_of());
        }
      }
      if (done < steps && PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
  }

  void piece(const float* x, const std::size_t* starts, std::size_t steps, int8_rnn_call call) const {
    const int8_weight* weight = &input_.weight();
    const int activation = 0;
    int8_linear_call linear{};
    linear.weights = &weight;
    linear.activations = &activation;
    linear.layers = 1;
    linear.rows = starts[steps] - starts[0];
    linear.threads = call.threads;
    linear.x = x;
    auto* input = static_cast<float*>(scratch(4, linear.rows * weight->out_features * sizeof(float)));
    linear.y = input;
    linear_.run(linear);
    call.steps = steps;
    call.starts = starts;
    call.input = input;
    kernel_.run(call);
  }

  Cell cell_;
  std::size_t hidden_;
  Kernel<int8_linear_call> linear_;
  Kernel<int8_rnn_call> kernel_;
  Int8Packed input_, recurrent_;
  std::optional<Int8Packed> projection_;
};

std::unique_ptr<RecurrentState> pack_recurrent(const std::string& cell, const Bytes& input, const Floats& input_scales,
                                               const Floats& input_bias, std::optional<float> input_scale,
                                               const Bytes& recurrent, const Floats& recurrent_scales,
                                               const Floats& recurrent_bias, const std::optional<Bytes>& projection,
                                               const std::optional<Floats>& projection_scales, const std::string& isa) {
  return std::make_unique<RecurrentState>(cell == "gru" ? Cell::gru : Cell::lstm, input, input_scales, input_bias,
                                          input_scale, recurrent, recurrent_scales, recurrent_bias, projection,
                                          projection_scales, parse(isa));
}

}  // namespace

void bind_recurrent(py::module_& m) {
  py::class_<RecurrentState>(m, "RecurrentState")
      .def("run", &RecurrentState::run, py::arg().noconvert(), py::arg().noconvert(), py::arg().noconvert(),
           py::arg().noconvert(), py::arg().noconvert(), py::arg(), py::arg())
      .def("run_at", &RecurrentState::run_at)
      .def("unpack", &RecurrentState::unpack)
      .def_property_readonly("level", &RecurrentState::level)
      .def_property_readonly("nbytes", &RecurrentState::nbytes);
  m.def("pack_recurrent", &pack_recurrent);
}

}  // namespace pycompress
