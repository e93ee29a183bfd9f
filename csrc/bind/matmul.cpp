// Adapters of int8_linear and sparse_linear.
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../int8_linear/pack.h"
#include "../sparse_linear/pack.h"
#include "bind.h"

namespace pycompress {
namespace {

// ---- int8_linear

class Int8State {
 public:
  Int8State(Isa level, Int8Packed packed) : kernel(find<int8_linear_call>(level)), packed_(std::move(packed)) {}

  void set(const Floats& scale, const std::optional<Floats>& bias, std::optional<float> input_scale) {
    packed_.set(scale.data(), bias ? bias->data() : nullptr, input_scale.value_or(0.0f));
  }

  Bytes unpack() const {
    Bytes result({weight().out_features, weight().in_features});
    packed_.unpack(result.mutable_data());
    return result;
  }

  const int8_weight& weight() const { return packed_.weight(); }
  std::string level() const { return isa_name(kernel.isa); }
  std::size_t nbytes() const { return packed_.bytes(); }

  const Kernel<int8_linear_call> kernel;

 private:
  Int8Packed packed_;
};

// Runs a call in chunks of rows; the pointers of `all` are those of its first row.
void run_int8(const Kernel<int8_linear_call>& kernel, const int8_linear_call& all) {
  double per_row = 0;
  for (std::size_t i = 0; i < all.layers; ++i) {
    per_row += static_cast<double>(all.weights[i]->out_features) * static_cast<double>(all.weights[i]->in_features);
  }
  const std::size_t in = all.weights[0]->in_features, out = all.weights[all.layers - 1]->out_features;
  const std::size_t out_bytes = out * output_bytes(all.output);
  in_chunks(all.rows, per_row, kernel.isa, all.threads, [&](std::size_t first, std::size_t rows) {
    int8_linear_call call = all;
    call.rows = rows;
    if (call.x) call.x += first * in;
    if (call.q) call.q += first * in;
    if (call.y) call.y = static_cast<char*>(call.y) + first * out_bytes;
    if (call.residual) call.residual += first * out;
    if (call.product) call.product += first * out;
    kernel.run(call);
  });
}

// y = layer(x) from and to addresses of contiguous rows. `output` and what x holds: 0 fp32, 1 bf16 (y only), 2 int8.
void int8_into(const Int8State& state, std::uintptr_t x, std::uintptr_t y, std::size_t rows, int activation,
               int threads, int input, int output, float output_scale, std::uintptr_t residual) {
  const int8_weight* weight = &state.weight();
  int8_linear_call call{};
  call.weights = &weight;
  call.activations = &activation;
  call.layers = 1;
  call.rows = rows;
  call.threads = threads;
  if (input == 0) call.x = reinterpret_cast<const float*>(x);
  if (input == 2) call.q = reinterpret_cast<const std::int8_t*>(x);
  call.output = static_cast<Output>(output);
  call.y = reinterpret_cast<void*>(y);
  call.output_scale = output_scale;
  call.residual = reinterpret_cast<const float*>(residual);
  run_int8(state.kernel, call);
}

Floats int8_linear(const Int8State& state, const Floats& x, int activation, int threads) {
  const auto rows = static_cast<std::size_t>(x.shape(0));
  Floats y({rows, state.weight().out_features});
  int8_into(state, reinterpret_cast<std::uintptr_t>(x.data()), reinterpret_cast<std::uintptr_t>(y.mutable_data()), rows,
            activation, threads, 0, 0, 0.0f, 0);
  return y;
}

void int8_linear_into(const Int8State& state, std::uintptr_t x, std::uintptr_t y, std::size_t rows, int activation,
                      int threads) {
  int8_into(state, x, y, rows, activation, threads, 0, 0, 0.0f, 0);
}

// Layers whose weights were packed for one level, and their activations.
class Int8Chain {
 public:
  Int8Chain(std::vector<std::shared_ptr<Int8State>> states, std::vector<int> activations)
      : states_(std::move(states)), activations_(std::move(activations)) {
    for (const auto& state : states_) weights_.push_back(&state->weight());
  }

  void into(std::uintptr_t x, std::uintptr_t y, std::size_t rows, int threads) const {
    int8_linear_call call{};
    call.weights = weights_.data();
    call.activations = activations_.data();
    call.layers = weights_.size();
    call.rows = rows;
    call.threads = threads;
    call.x = reinterpret_cast<const float*>(x);
    call.y = reinterpret_cast<void*>(y);
    run_int8(states_[0]->kernel, call);
  }

 private:
  std::vector<std::shared_ptr<Int8State>> states_;
  std::vector<const int8_weight*> weights_;
  std::vector<int> activations_;
};

std::shared_ptr<Int8State> pack_int8(const Bytes& weight, const Floats& scale, const std::optional<Floats>& bias,
                                     std::optional<float> input_scale, const std::string& isa,
                                     std::optional<std::size_t> height) {
  const Isa level = parse(isa);
  auto state = std::make_shared<Int8State>(level, pack_int8_weight(weight, height, find<int8_linear_call>(level).isa));
  state->set(scale, bias, input_scale);
  return state;
}

py::array_t<std::int32_t> int8_matmul(const Bytes& a, const Bytes& b, int threads, const std::string& isa) {
  const auto rows = static_cast<std::size_t>(a.shape(0)), in = static_cast<std::size_t>(a.shape(1));
  const auto out = static_cast<std::size_t>(b.shape(1));
  py::array_t<std::int32_t> product({rows, out});
  const std::int8_t* from = b.data();
  const Isa level = parse(isa);
  std::optional<Int8State> packed;
  {
    py::gil_scoped_release release;
    packed.emplace(level, Int8Packed::transposed(from, in, out));
  }
  const int8_weight* weight = &packed->weight();
  const int activation = 0;
  bool overflow = false;
  int8_linear_call call{};
  call.weights = &weight;
  call.activations = &activation;
  call.layers = 1;
  call.rows = rows;
  call.threads = threads;
  call.q = a.data();
  call.product = product.mutable_data();
  call.overflow = &overflow;
  run_int8(packed->kernel, call);
  if (overflow) throw std::overflow_error("a @ b must fit into int32");
  return product;
}

// ---- sparse_linear

class SparseState {
 public:
  SparseState(const Floats& weight, const std::optional<Floats>& bias, std::size_t height, Isa level)
      : kernel(find<sparse_linear_call>(level)),
        packed_(weight.data(), bias ? bias->data() : nullptr, static_cast<std::size_t>(weight.shape(0)),
                static_cast<std::size_t>(weight.shape(1)), height) {
    if (kernel.isa == Isa::avx512) packed_.add_steps(weight.data());  // no other level reads them
  }

  Floats unpack() const {
    Floats result({weight().out_features, weight().in_features});
    packed_.unpack(result.mutable_data());
    return result;
  }

  const sparse_weight& weight() const { return packed_.weight(); }
  std::string level() const { return isa_name(kernel.isa); }
  std::size_t nbytes() const { return packed_.bytes(); }

  const Kernel<sparse_linear_call> kernel;

 private:
  SparsePacked packed_;
};

void run_sparse(const Kernel<sparse_linear_call>& kernel, const sparse_linear_call& all) {
  double per_row = 0;
  for (std::size_t i = 0; i < all.layers; ++i) {
    per_row += static_cast<double>(all.weights[i]->stored) * 8 + static_cast<double>(all.weights[i]->out_features);
  }
  const std::size_t in = all.weights[0]->in_features, out = all.weights[all.layers - 1]->out_features;
  in_chunks(all.rows, per_row, kernel.isa, all.threads, [&](std::size_t first, std::size_t rows) {
    sparse_linear_call call = all;
    call.rows = rows;
    call.x += first * in;
    call.y += first * out;
    kernel.run(call);
  });
}

void sparse_linear_into(const SparseState& state, std::uintptr_t x, std::uintptr_t y, std::size_t rows, int activation,
                        int threads) {
  const sparse_weight* weight = &state.weight();
  run_sparse(state.kernel, {&weight, &activation, 1, rows, threads, reinterpret_cast<const float*>(x),
                            reinterpret_cast<float*>(y)});
}

Floats sparse_linear(const SparseState& state, const Floats& x, int activation, int threads) {
  const auto rows = static_cast<std::size_t>(x.shape(0));
  Floats y({rows, state.weight().out_features});
  sparse_linear_into(state, reinterpret_cast<std::uintptr_t>(x.data()),
                     reinterpret_cast<std::uintptr_t>(y.mutable_data()), rows, activation, threads);
  return y;
}

// Layers whose weights were packed for one level, and their activations.
class SparseChain {
 public:
  SparseChain(std::vector<std::shared_ptr<SparseState>> states, std::vector<int> activations)
      : states_(std::move(states)), activations_(std::move(activations)) {
    for (const auto& state : states_) weights_.push_back(&state->weight());
  }

  void into(std::uintptr_t x, std::uintptr_t y, std::size_t rows, int threads) const {
    run_sparse(states_[0]->kernel, {weights_.data(), activations_.data(), weights_.size(), rows, threads,
                                    reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y)});
  }

 private:
  std::vector<std::shared_ptr<SparseState>> states_;
  std::vector<const sparse_weight*> weights_;
  std::vector<int> activations_;
};

std::shared_ptr<SparseState> pack_sparse(const Floats& weight, const std::optional<Floats>& bias, std::size_t height,
                                         const std::string& isa) {
  return std::make_shared<SparseState>(weight, bias, height, parse(isa));
}

}  // namespace

void bind_matmul(py::module_& m) {
  py::class_<Int8State, std::shared_ptr<Int8State>>(m, "Int8State")
      .def("linear", &int8_linear)
      .def("linear_into", &int8_linear_into)
      .def("into", &int8_into)
      .def_property_readonly("out_features", [](const Int8State& state) { return state.weight().out_features; })
      .def("unpack", &Int8State::unpack)
      .def_property_readonly("level", &Int8State::level)
      .def_property_readonly("nbytes", &Int8State::nbytes);
  py::class_<SparseState, std::shared_ptr<SparseState>>(m, "SparseState")
      .def("linear", &sparse_linear)
      .def("linear_into", &sparse_linear_into)
      .def("unpack", &SparseState::unpack)
      .def_property_readonly("level", &SparseState::level)
      .def_property_readonly("nbytes", &SparseState::nbytes);
  py::class_<Int8Chain>(m, "Int8Chain")
      .def(py::init<std::vector<std::shared_ptr<Int8State>>, std::vector<int>>())
      .def("into", &Int8Chain::into);
  py::class_<SparseChain>(m, "SparseChain")
      .def(py::init<std::vector<std::shared_ptr<SparseState>>, std::vector<int>>())
      .def("into", &SparseChain::into);
  m.def("pack_int8", &pack_int8);
  m.def("pack_sparse", &pack_sparse);
  m.def("int8_matmul", &int8_matmul);
}

}  // namespace pycompress
