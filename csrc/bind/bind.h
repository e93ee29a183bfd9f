// What the adapters share: arrays -> pointers. No Python outside this folder.
//
// The caller (pycompress/kernels) checks shapes, dtypes and contiguity. The GIL is released around every kernel. Calls
// that would run long are cut into chunks of rows, between which signals are checked, so that Ctrl-C is answered.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "../int8_linear/pack.h"
#include "../isa.h"

namespace py = pybind11;

namespace pycompress {

#define KERNEL(operation, isa) \
  struct operation##_call;     \
  void operation##_##isa(const operation##_call&);
#include "../kernels.def"
#undef KERNEL

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
#include "../kernels.def"
#undef KERNEL
  return best;
}

// The level of a name; std::invalid_argument where this CPU lacks it.
Isa parse(const std::string& name);

using Floats = py::array_t<float, py::array::c_style>;
using Bytes = py::array_t<std::int8_t, py::array::c_style>;

// A weight as steps, where a level of int8_linear or int8_rnn has a kernel for them and they are faster than the dense weight or
// the bitmap: from about 50 % zeros on (their two instructions take 1.3 to 1.7 times as long as its one).
template <class At>
std::optional<Int8Packed> pack_steps(std::size_t out, std::size_t in, At at, Isa level) {
  if (level != Isa::avx512icl) return std::nullopt;
  Int8Packed steps = Int8Packed::sparse(out, in, int8_steps, at);
  return steps.weight().sparse->density < 1.1 ? std::optional(std::move(steps)) : std::nullopt;
}

// An int8 weight [out, in]: dense, or of a sparse one with strips of `height` outputs, 0 for one without a pattern.
inline Int8Packed pack_int8_weight(const Bytes& weight, std::optional<std::size_t> height, Isa level) {
  const auto out = static_cast<std::size_t>(weight.shape(0)), in = static_cast<std::size_t>(weight.shape(1));
  const auto at = [in, from = weight.data()](std::size_t o, std::size_t i) { return from[o * in + i]; };
  if (height == int8_bitmap) {
    if (auto steps = pack_steps(out, in, at, level)) return *std::move(steps);
  }
  return height ? Int8Packed::sparse(out, in, *height, at) : Int8Packed(out, in, at);
}

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

// A packed weight of a linear layer with fp32 rows, and its kernel: `Packed` has weight(), unpack(pointer) and bytes(), and
// `Array` is what it is unpacked to.
template <class Call, class Packed, class Array>
class LinearState {
 public:
  // work: operations for each weight and row, by those of an int8 product.
  template <class... Parts>
  LinearState(double work, Isa level, Parts&&... parts)
      : work_(work), kernel_(find<Call>(level)), packed_(std::forward<Parts>(parts)...) {}

  Array unpack() const {
    Array result({weight().out_features, weight().in_features});
    packed_.unpack(result.mutable_data());
    return result;
  }

  // y = layer(x), from and to addresses of contiguous rows.
  void linear_into(std::uintptr_t x, std::uintptr_t y, std::size_t rows, int activation, int threads) const {
    const std::size_t in = weight().in_features, out = weight().out_features;
    in_chunks(rows, work_ * static_cast<double>(out) * static_cast<double>(in), kernel_.isa, threads,
              [&](std::size_t first, std::size_t count) {
      Call call{};
      call.weight = &weight();
      call.rows = count;
      call.threads = threads;
      call.activation = activation;
      call.x = reinterpret_cast<const float*>(x) + first * in;
      call.y = reinterpret_cast<float*>(y) + first * out;
      kernel_.run(call);
    });
  }

  Floats linear(const Floats& x, int activation, int threads) const {
    const auto rows = static_cast<std::size_t>(x.shape(0));
    Floats y({rows, weight().out_features});
    linear_into(reinterpret_cast<std::uintptr_t>(x.data()), reinterpret_cast<std::uintptr_t>(y.mutable_data()), rows,
                activation, threads);
    return y;
  }

  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return packed_.bytes(); }

  static void bind(py::module_& m, const char* name) {
    py::class_<LinearState>(m, name)
        .def("linear", &LinearState::linear)
        .def("linear_into", &LinearState::linear_into)
        .def("unpack", &LinearState::unpack)
        .def_property_readonly("level", &LinearState::level)
        .def_property_readonly("nbytes", &LinearState::nbytes);
  }

 private:
  const auto& weight() const { return packed_.weight(); }

  double work_;
  Kernel<Call> kernel_;
  Packed packed_;
};

// One for each file of this folder.
void bind_bf16(py::module_& m);
void bind_binary(py::module_& m);
void bind_channels_last(py::module_& m);
void bind_codebook(py::module_& m);
void bind_convolution(py::module_& m);
void bind_int4(py::module_& m);
void bind_matmul(py::module_& m);
void bind_limits(py::module_& m);
void bind_recurrent(py::module_& m);
void bind_selection(py::module_& m);
void bind_spmm(py::module_& m);
void bind_vectors(py::module_& m);

}  // namespace pycompress
