// pycompress._native: arrays -> pointers, one adapter for each operation. No Python outside this file.
//
// The caller (pycompress/kernels) checks shapes, dtypes and contiguity. The GIL is released around every kernel. Calls
// that would run long are cut into chunks of rows, between which signals are checked, so that Ctrl-C is answered.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "int8_linear/int8_linear.h"
#include "isa.h"
#include "kth_magnitude/kth_magnitude.h"
#include "quantize/quantize.h"
#include "scores/scores.h"
#include "sparse_linear/sparse_linear.h"
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

// Zeroed memory on a cache line, with 64 bytes of slack at the end.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t size = 0) : size_(size) {
    const std::size_t bytes = (size * sizeof(T) + 127) / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    std::memset(static_cast<void*>(data_.get()), 0, bytes);
  }
  T* data() { return data_.get(); }
  std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::size_t size_;
  std::unique_ptr<T, Free> data_;
};

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
  // `at(o, i)` gives the weight of an output and an input.
  template <class At>
  Int8State(std::size_t out, std::size_t in, Isa level, At at)
      : kernel_(find<int8_linear_call>(level)),
        panels_((out + int8_panel - 1) / int8_panel),
        data_(panels_ * ((in + 3) / 4) * 128),
        sums_((in / int8_sum_chunk + 1) * panels_ * int8_panel),
        scale_(panels_ * int8_panel),
        bias_(panels_ * int8_panel) {
    weight_ = {out, in, panels_, (in + 3) / 4, data_.data(), sums_.data(), scale_.data(), bias_.data(), 0.0f};
    for (std::size_t panel = 0; panel < panels_; ++panel) {
      for (std::size_t i = 0; i < in; i += 4) {
        std::int32_t* sums = sums_.data() + (i / int8_sum_chunk * panels_ + panel) * int8_panel;
        for (std::size_t o = panel * int8_panel; o < std::min(out, (panel + 1) * int8_panel); o += 16, sums += 16) {
          std::int8_t* line = data_.data() + offset(o, i);
          if (o + 16 <= out && i + 4 <= in) {
            pack_line(line, sums, 16, 4, [=](std::size_t j, std::size_t k) { return at(o + j, i + k); });
          } else {
            pack_line(line, sums, std::min<std::size_t>(16, out - o), std::min<std::size_t>(4, in - i),
                      [=](std::size_t j, std::size_t k) { return at(o + j, i + k); });
          }
        }
      }
    }
  }

  // One line of 16 outputs x 4 inputs, and its share of the sums of each output.
  template <class At>
  static void pack_line(std::int8_t* line, std::int32_t* sums, std::size_t outputs, std::size_t inputs, At at) {
    for (std::size_t k = 0; k < inputs; ++k) {
      for (std::size_t j = 0; j < outputs; ++j) {
        line[j * 4 + k] = at(j, k);
        sums[j] += at(j, k);
      }
    }
  }

  std::size_t offset(std::size_t o, std::size_t i) const {
    const std::size_t panel = o / int8_panel, tile = o % int8_panel / 16, block = i / 64;
    const std::size_t in_block = std::min<std::size_t>(16, weight_.groups - block * 16);
    return panel * weight_.groups * 128 + block * 2048 + tile * in_block * 64 + i % 64 / 4 * 64 + o % 16 * 4 + i % 4;
  }

  void set(const Floats& scale, const std::optional<Floats>& bias, std::optional<float> input_scale) {
    std::copy_n(scale.data(), scale.size(), scale_.data());
    if (bias) std::copy_n(bias->data(), bias->size(), bias_.data());
    weight_.input_scale = input_scale.value_or(0.0f);
  }

  Bytes unpack() const {
    Bytes result({weight_.out_features, weight_.in_features});
    std::int8_t* to = result.mutable_data();
    for (std::size_t o = 0; o < weight_.out_features; ++o) {
      for (std::size_t i = 0; i < weight_.in_features; ++i) *to++ = weight_.data[offset(o, i)];
    }
    return result;
  }

  using Call = int8_linear_call;

  void run(int8_linear_call call) const {
    call.weight = &weight_;
    const int8_linear_call all = call;
    const double per_row = static_cast<double>(weight_.out_features) * static_cast<double>(weight_.in_features);
    in_chunks(all.rows, per_row, kernel_.isa, all.threads, [&](std::size_t first, std::size_t rows) {
      call.rows = rows;
      if (all.x) {
        call.x = all.x + first * weight_.in_features;
        call.y = all.y + first * weight_.out_features;
      } else {
        call.q = all.q + first * weight_.in_features;
        call.product = all.product + first * weight_.out_features;
      }
      kernel_.run(call);
    });
  }

  const int8_weight& weight() const { return weight_; }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return data_.bytes() + sums_.bytes() + scale_.bytes() + bias_.bytes(); }

 private:
  Kernel<int8_linear_call> kernel_;
  std::size_t panels_;
  Buffer<std::int8_t> data_;
  Buffer<std::int32_t> sums_;
  Buffer<float> scale_, bias_;
  int8_weight weight_;
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
  SparseState(const Floats& weight, const std::optional<Floats>& bias, Isa level)
      : kernel_(find<sparse_linear_call>(level)), bias_(static_cast<std::size_t>(weight.shape(0))) {
    const auto out = static_cast<std::size_t>(weight.shape(0)), in = static_cast<std::size_t>(weight.shape(1));
    // Enough tiles to share among threads, each high enough for runs of equal counts.
    const std::size_t tile = std::clamp<std::size_t>((out / 4 + 15) / 16 * 16, 64, 256);
    const std::size_t tiles = (out + tile - 1) / tile, blocks = (in + sparse_block - 1) / sparse_block;
    for (std::size_t t = 0; t < tiles; ++t) {
      for (std::size_t b = 0; b < blocks; ++b) {
        add_part(weight.data(), in, t * tile, std::min(tile, out - t * tile), b * sparse_block,
                 std::min(sparse_block, in - b * sparse_block));
      }
    }
    if (bias) std::copy_n(bias->data(), out, bias_.data());
    weight_ = {out,           in,           values_.size(),  tile,            tiles,          blocks,
               parts_.data(), runs_.data(), outputs_.data(), columns_.data(), values_.data(), bias_.data()};
  }
  SparseState(const SparseState&) = delete;

  Floats unpack() const {
    Floats result({weight_.out_features, weight_.in_features});
    float* to = result.mutable_data();
    std::fill_n(to, result.size(), 0.0f);
    for (std::size_t p = 0; p < parts_.size(); ++p) {
      const std::size_t first_out = p / weight_.blocks * weight_.tile, first_in = p % weight_.blocks * sparse_block;
      std::size_t output = parts_[p].output, entry = parts_[p].entry;
      for (std::size_t r = parts_[p].run; r < parts_[p].run_end; ++r) {
        for (std::size_t o = 0; o < runs_[r].outputs; ++o, ++output) {
          float* row = to + (first_out + outputs_[output]) * weight_.in_features + first_in;
          for (std::size_t i = 0; i < runs_[r].count; ++i, ++entry) row[columns_[entry]] = values_[entry];
        }
      }
    }
    return result;
  }

  using Call = sparse_linear_call;
  const sparse_weight& weight() const { return weight_; }

  void run(sparse_linear_call call) const {
    call.weight = &weight_;
    const sparse_linear_call all = call;
    const double per_row = static_cast<double>(weight_.nonzeros) * 8 + static_cast<double>(weight_.out_features);
    in_chunks(all.rows, per_row, kernel_.isa, all.threads, [&](std::size_t first, std::size_t rows) {
      call.rows = rows;
      call.x = all.x + first * weight_.in_features;
      call.y = all.y + first * weight_.out_features;
      kernel_.run(call);
    });
  }

  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const {
    return parts_.size() * sizeof(sparse_part) + runs_.size() * sizeof(sparse_run) + outputs_.size() +
           columns_.size() + values_.size() * sizeof(float) + bias_.bytes();
  }

 private:
  void add_part(const float* weight, std::size_t stride, std::size_t first_out, std::size_t height,
                std::size_t first_in, std::size_t width) {
    sparse_part part{};
    part.run = static_cast<std::uint32_t>(runs_.size());
    part.output = static_cast<std::uint32_t>(outputs_.size());
    part.entry = values_.size();
    std::vector<std::pair<std::size_t, std::size_t>> order;  // (count, output)
    for (std::size_t o = 0; o < height; ++o) {
      const float* row = weight + (first_out + o) * stride + first_in;
      const auto count = static_cast<std::size_t>(std::count_if(row, row + width, [](float v) { return v != 0; }));
      if (count > 0) order.emplace_back(count, o);
    }
    std::sort(order.begin(), order.end());
    for (const auto& [count, o] : order) {
      if (runs_.size() == part.run || runs_.back().count != count) runs_.push_back({static_cast<std::uint16_t>(count), 0});
      ++runs_.back().outputs;
      outputs_.push_back(static_cast<std::uint8_t>(o));
      const float* row = weight + (first_out + o) * stride + first_in;
      for (std::size_t i = 0; i < width; ++i) {
        if (row[i] == 0) continue;
        columns_.push_back(static_cast<std::uint8_t>(i));
        values_.push_back(row[i]);
      }
    }
    part.run_end = static_cast<std::uint32_t>(runs_.size());
    parts_.push_back(part);
  }

  Kernel<sparse_linear_call> kernel_;
  std::vector<sparse_part> parts_;
  std::vector<sparse_run> runs_;
  std::vector<std::uint8_t> outputs_, columns_;
  std::vector<float> values_;
  Buffer<float> bias_;
  sparse_weight weight_;
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
