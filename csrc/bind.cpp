// pycompress._native: arrays -> pointers, one adapter for each operation. No Python outside this file.
//
// The caller (pycompress/kernels) checks shapes, dtypes and contiguity. The GIL is released around every kernel. Calls
// that would run long are cut into chunks of rows, between which signals are checked, so that Ctrl-C is answered.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "int8_linear/pack.h"
#include "isa.h"
#include "kth_magnitude/kth_magnitude.h"
#include "quantize/quantize.h"
#include "scores/scores.h"
#include "sparse_linear/pack.h"
#include "threshold/threshold.h"

namespace py = pybind11;

namespace pycompress {

#define KERNEL(operation, isa) void operation##_##isa(const operation##_call&);
#include "kernels.def"
#undef KERNEL

namespace {

// The kernel of an operation for a level: the highest of its versions that the level implies.
template <class Call>
struct Kernel {
  Isa isa;
  void (*run)(const Call&);
};

template <class Call>
Kernel<Call> find(Isa level) {
  Kernel<Call> best{Isa::scalar, nullptr};
#define KERNEL(operation, target)                                 \
  if constexpr (std::is_same_v<Call, operation##_call>) {         \
    if (implies(level, Isa::target)) best = {Isa::target, operation##_##target}; \
  }
#include "kernels.def"
#undef KERNEL
  return best;
}

Isa parse(const std::string& name) {
  for (int i = 0; i < isa_count; ++i) {
    const auto isa = static_cast<Isa>(i);
    if (name == isa_name(isa) && cpu_has(isa)) return isa;
  }
  throw std::invalid_argument("no such level on this CPU: " + name);
}

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (int i = 0; i < isa_count; ++i) {
    const auto isa = static_cast<Isa>(i);
    bool exists = false;
#define KERNEL(operation, target) exists = exists || isa == Isa::target;
#include "kernels.def"
#undef KERNEL
    if (exists && cpu_has(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

std::map<std::string, std::vector<std::string>> kernels() {
  std::map<std::string, std::vector<std::string>> table;
#define KERNEL(operation, isa) table[#operation].push_back(#isa);
#include "kernels.def"
#undef KERNEL
  return table;
}

using Floats = py::array_t<float, py::array::c_style>;
using Bytes = py::array_t<std::int8_t, py::array::c_style>;

// Calls run(first, rows) for chunks of rows of about 20 ms, without the GIL, and looks for signals between them.
template <class Run>
void in_chunks(std::size_t rows, double operations_per_row, Isa isa, int threads, Run&& run) {
  const double in_time = (isa == Isa::scalar ? 2e7 : 5e8) * std::max(1, threads);
  const double share = in_time / std::max(operations_per_row, 1.0);
  const std::size_t chunk = share >= static_cast<double>(rows) ? rows : std::max<std::size_t>(64, static_cast<std::size_t>(share) / 64 * 64);
  for (std::size_t first = 0; first < rows; first += chunk) {
    {
      py::gil_scoped_release release;
      run(first, std::min(chunk, rows - first));
    }
    if (chunk < rows && PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

// y = linear(x) for a packed state, from and to addresses of contiguous fp32 rows.
template <class State>
void linear_into(const State& state, std::uintptr_t x, std::uintptr_t y, std::size_t rows, int activation, int threads) {
  typename State::Call call{};
  call.rows = rows;
  call.threads = threads;
  call.activation = activation;
  call.x = reinterpret_cast<const float*>(x);
  call.y = reinterpret_cast<float*>(y);
  state.run(call);
}

template <class State>
Floats linear(const State& state, const Floats& x, int activation, int threads) {
  const auto rows = static_cast<std::size_t>(x.shape(0));
  Floats y({rows, state.weight().out_features});
  linear_into(state, reinterpret_cast<std::uintptr_t>(x.data()), reinterpret_cast<std::uintptr_t>(y.mutable_data()),
              rows, activation, threads);
  return y;
}

// ---- int8_linear

class Int8State {
 public:
  using Call = int8_linear_call;

  template <class At>
  Int8State(std::size_t out, std::size_t in, Isa level, At at)
      : kernel_(find<int8_linear_call>(level)), packed_(out, in, at) {}

  void set(const Floats& scale, const std::optional<Floats>& bias, std::optional<float> input_scale) {
    packed_.set(scale.data(), bias ? bias->data() : nullptr, input_scale.value_or(0.0f));
  }

  Bytes unpack() const {
    Bytes result({weight().out_features, weight().in_features});
    packed_.unpack(result.mutable_data());
    return result;
  }

  void run(int8_linear_call call) const {
    call.weight = &weight();
    const int8_linear_call all = call;
    const double per_row = static_cast<double>(weight().out_features) * static_cast<double>(weight().in_features);
    in_chunks(all.rows, per_row, kernel_.isa, all.threads, [&](std::size_t first, std::size_t rows) {
      call.rows = rows;
      if (all.x) {
        call.x = all.x + first * weight().in_features;
        call.y = all.y + first * weight().out_features;
      } else {
        call.q = all.q + first * weight().in_features;
        call.product = all.product + first * weight().out_features;
      }
      kernel_.run(call);
    });
  }

  const int8_weight& weight() const { return packed_.weight(); }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return packed_.bytes(); }

 private:
  Kernel<int8_linear_call> kernel_;
  Int8Packed packed_;
};

std::unique_ptr<Int8State> pack_int8(const Bytes& weight, const Floats& scale, const std::optional<Floats>& bias,
                                     std::optional<float> input_scale, const std::string& isa) {
  const auto out = static_cast<std::size_t>(weight.shape(0)), in = static_cast<std::size_t>(weight.shape(1));
  const std::int8_t* from = weight.data();
  auto state = std::make_unique<Int8State>(out, in, parse(isa),
                                           [=](std::size_t o, std::size_t i) { return from[o * in + i]; });
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
    packed.emplace(out, in, level, [=](std::size_t o, std::size_t i) { return from[i * out + o]; });
  }
  bool overflow = false;
  int8_linear_call call{};
  call.rows = rows;
  call.threads = threads;
  call.q = a.data();
  call.product = product.mutable_data();
  call.overflow = &overflow;
  packed->run(call);
  if (overflow) throw std::overflow_error("a @ b must fit into int32");
  return product;
}

// ---- sparse_linear

class SparseState {
 public:
  using Call = sparse_linear_call;

  SparseState(const Floats& weight, const std::optional<Floats>& bias, Isa level)
      : kernel_(find<sparse_linear_call>(level)),
        packed_(weight.data(), bias ? bias->data() : nullptr, static_cast<std::size_t>(weight.shape(0)),
                static_cast<std::size_t>(weight.shape(1))) {}

  Floats unpack() const {
    Floats result({weight().out_features, weight().in_features});
    packed_.unpack(result.mutable_data());
    return result;
  }

  void run(sparse_linear_call call) const {
    call.weight = &weight();
    const sparse_linear_call all = call;
    const double per_row = static_cast<double>(weight().nonzeros) * 8 + static_cast<double>(weight().out_features);
    in_chunks(all.rows, per_row, kernel_.isa, all.threads, [&](std::size_t first, std::size_t rows) {
      call.rows = rows;
      call.x = all.x + first * weight().in_features;
      call.y = all.y + first * weight().out_features;
      kernel_.run(call);
    });
  }

  const sparse_weight& weight() const { return packed_.weight(); }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return packed_.bytes(); }

 private:
  Kernel<sparse_linear_call> kernel_;
  SparsePacked packed_;
};

std::unique_ptr<SparseState> pack_sparse(const Floats& weight, const std::optional<Floats>& bias,
                                         const std::string& isa) {
  return std::make_unique<SparseState>(weight, bias, parse(isa));
}

// ---- the others

Integer integer_type(const py::array& q) {
  const bool is_signed = q.dtype().kind() == 'i';
  return q.itemsize() == 1 ? (is_signed ? Integer::i8 : Integer::u8) : (is_signed ? Integer::i16 : Integer::u16);
}

// x -> q, or with `inverse` q -> x; both [groups, n] and contiguous.
void quantize(Floats& x, py::array& q, const Floats& scale, const Floats& zero_point, float low, float high,
              bool inverse, int threads, const std::string& isa) {
  quantize_call call{};
  call.groups = static_cast<std::size_t>(scale.size());
  call.n = static_cast<std::size_t>(x.shape(1));
  call.threads = threads;
  call.inverse = inverse;
  call.x = const_cast<float*>(x.data());  // written only by the inverse, into an array of its caller's own
  call.q = const_cast<void*>(q.data());
  call.type = integer_type(q);
  call.scale = scale.data();
  call.zero_point = zero_point.data();
  call.low = low;
  call.high = high;
  const auto kernel = find<quantize_call>(parse(isa));
  py::gil_scoped_release release;
  kernel.run(call);
}

Floats scores(const Floats& x, int power, bool per_column, int threads, const std::string& isa) {
  scores_call call{};
  call.rows = static_cast<std::size_t>(x.shape(0));
  call.columns = static_cast<std::size_t>(x.shape(1));
  call.threads = threads;
  call.power = power;
  call.per_column = per_column;
  call.x = x.data();
  Floats result(per_column ? x.shape(1) : x.shape(0));
  call.scores = result.mutable_data();
  const auto kernel = find<scores_call>(parse(isa));
  py::gil_scoped_release release;
  kernel.run(call);
  return result;
}

float kth_magnitude(const std::vector<Floats>& arrays, std::uint64_t k, int threads, const std::string& isa) {
  std::vector<const float*> pointers;
  std::vector<std::size_t> sizes;
  for (const auto& array : arrays) {
    pointers.push_back(array.data());
    sizes.push_back(static_cast<std::size_t>(array.size()));
  }
  float value = 0;
  const kth_magnitude_call call{pointers.data(), sizes.data(), pointers.size(), k, threads, &value};
  const auto kernel = find<kth_magnitude_call>(parse(isa));
  py::gil_scoped_release release;
  kernel.run(call);
  return value;
}

std::uint64_t threshold(Floats& x, float limit, int threads, const std::string& isa) {
  std::uint64_t zeros = 0;
  const threshold_call call{static_cast<std::size_t>(x.size()), threads, limit, x.mutable_data(), &zeros};
  const auto kernel = find<threshold_call>(parse(isa));
  py::gil_scoped_release release;
  kernel.run(call);
  return zeros;
}

}  // namespace
}  // namespace pycompress

PYBIND11_MODULE(_native, m) {
  using namespace pycompress;
  m.doc() = "The C++ kernels of pycompress; called by pycompress.kernels, which checks the arguments.";
  m.def("levels", &levels, "Instruction set levels that have kernels and that this CPU runs, lowest first.");
  m.def("kernels", &kernels, "The levels that each operation exists for.");
  py::class_<Int8State>(m, "Int8State")
      .def("linear", &linear<Int8State>)
      .def("linear_into", &linear_into<Int8State>)
      .def("unpack", &Int8State::unpack)
      .def_property_readonly("level", &Int8State::level)
      .def_property_readonly("nbytes", &Int8State::nbytes);
  py::class_<SparseState>(m, "SparseState")
      .def("linear", &linear<SparseState>)
      .def("linear_into", &linear_into<SparseState>)
      .def("unpack", &SparseState::unpack)
      .def_property_readonly("level", &SparseState::level)
      .def_property_readonly("nbytes", &SparseState::nbytes);
  m.def("pack_int8", &pack_int8);
  m.def("pack_sparse", &pack_sparse);
  m.def("int8_matmul", &int8_matmul);
  m.def("quantize", &quantize, py::arg().noconvert(), py::arg().noconvert(), py::arg(), py::arg(), py::arg(), py::arg(),
        py::arg(), py::arg(), py::arg());
  m.def("scores", &scores);
  m.def("kth_magnitude", &kth_magnitude);
  m.def("threshold", &threshold, py::arg().noconvert(), py::arg(), py::arg(), py::arg());
}
