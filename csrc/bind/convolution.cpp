// Adapters of int8_conv and sparse_conv.
#include <array>
#include <memory>
#include <vector>

#include "../buffer.h"
#include "../int8_conv/int8_conv.h"
#include "../sparse_conv/sparse_conv.h"
#include "../sparse_linear/pack.h"
#include "bind.h"

namespace pycompress {
namespace {

// Sizes of a convolution: kernel, stride, dilation (height, width), padding (top, bottom, left, right).
using Pair = std::array<std::size_t, 2>;
using Four = std::array<std::size_t, 4>;

// What both kinds of weights hold: sizes of weight [outputs, channels / groups, height, width] and its geometry.
template <class Weight>
void set_sizes(Weight& to, const py::array& weight, Pair stride, Four padding, Pair dilation, std::size_t groups) {
  to.outputs = static_cast<std::size_t>(weight.shape(0));
  to.channels = static_cast<std::size_t>(weight.shape(1)) * groups;
  to.groups = groups;
  for (std::size_t i = 0; i < 2; ++i) {
    to.kernel[i] = static_cast<std::size_t>(weight.shape(2 + static_cast<py::ssize_t>(i)));
    to.stride[i] = stride[i];
    to.dilation[i] = dilation[i];
  }
  std::copy(padding.begin(), padding.end(), to.padding);
}

// From and to addresses of contiguous fp32 images; `work` operations an image. A call that would run long is cut between
// images.
template <class Call, class Weight>
void run_images(const Kernel<Call>& kernel, const Weight& weight, double work, std::uintptr_t x, std::uintptr_t y,
                std::size_t images, std::size_t height, std::size_t width, std::size_t pixels, int activation,
                int threads) {
  const double share = (kernel.isa == Isa::scalar ? 2e7 : 5e8) * std::max(1, threads) / std::max(work, 1.0);
  const std::size_t chunk = share >= static_cast<double>(images) ? images : std::max<std::size_t>(1, static_cast<std::size_t>(share));
  for (std::size_t first = 0; first < images; first += chunk) {
    {
      py::gil_scoped_release release;
      Call call{};
      call.weight = &weight;
      call.images = std::min(chunk, images - first);
      call.height = height;
      call.width = width;
      call.threads = threads;
      call.activation = activation;
      call.x = reinterpret_cast<const float*>(x) + first * weight.channels * height * width;
      call.y = reinterpret_cast<float*>(y) + first * weight.outputs * pixels;
      kernel.run(call);
    }
    if (chunk < images && PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

class ConvState {
 public:
  // weight [outputs, channels / groups, height, width]; strip: outputs that skip words together, 0 for a dense weight
  ConvState(const Bytes& weight, const Floats& scale, const std::optional<Floats>& bias,
            std::optional<float> input_scale, Pair stride, Four padding, Pair dilation, std::size_t groups,
            std::size_t strip, Isa level)
      : kernel_(find<int8_conv_call>(level)), packed_(0), scale_(scale.size()), bias_(scale.size()) {
    std::copy_n(scale.data(), scale.size(), scale_.data());
    if (bias) std::copy_n(bias->data(), bias->size(), bias_.data());
    set_sizes(weight_, weight, stride, padding, dilation, groups);
    weight_.scale = scale_.data();
    weight_.bias = bias_.data();
    weight_.input_scale = input_scale.value_or(0.0f);
    if (strip != 0 && set_words(weight.data(), strip)) return;
    std::size_t bytes = 0;
    int8_conv_call call{};
    call.weight = &weight_;
    call.from = weight.data();
    call.bytes = &bytes;
    kernel_.run(call);
    packed_ = Buffer<std::int8_t>(bytes);
    call.to = packed_.data();
    kernel_.run(call);
    weight_.packed = packed_.data();
  }

  void into(std::uintptr_t x, std::uintptr_t y, std::size_t images, std::size_t height, std::size_t width,
            std::size_t pixels, int activation, int threads) const {
    const double work = static_cast<double>(pixels * weight_.outputs) *
                        static_cast<double>(weight_.channels / weight_.groups * weight_.kernel[0] * weight_.kernel[1]);
    run_images(kernel_, weight_, work, x, y, images, height, width, pixels, activation, threads);
  }

  std::size_t outputs() const { return weight_.outputs; }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return packed_.bytes() + word_bytes_ + scale_.bytes() + bias_.bytes(); }

 private:
  // Whether it is kept sparse: not one channel a group, and sums that int32 surely holds.
  bool set_words(const std::int8_t* weight, std::size_t strip) {
    const std::size_t channels = weight_.channels / weight_.groups, taps = weight_.kernel[0] * weight_.kernel[1];
    const std::size_t outputs = weight_.outputs / weight_.groups, words = (channels + 3) / 4 * taps;
    if (channels == 1 || words > (1u << 16) / 4) return false;
    for (std::size_t g = 0; g < weight_.groups; ++g) {
      std::vector<std::uint32_t> matrix(outputs * words);
      for (std::size_t o = 0; o < outputs; ++o) {
        std::int32_t sum = 0;
        for (std::size_t c = 0; c < channels; ++c) {
          for (std::size_t tap = 0; tap < taps; ++tap, ++weight) {
            matrix[o * words + c / 4 * taps + tap] |= std::uint32_t{static_cast<std::uint8_t>(*weight)} << (c % 4 * 8);
            sum += *weight;
          }
        }
        excess_.push_back(sum * 128);
      }
      std::vector<std::uint32_t> used{0};
      for (std::size_t i = 0; i < words; ++i) {
        bool any = false;
        for (std::size_t o = 0; o < outputs; ++o) any = any || matrix[o * words + i] != 0;
        if (any) used.push_back(static_cast<std::uint32_t>(i));
      }
      used[0] = static_cast<std::uint32_t>(used.size() - 1);
      lists_.push_back(std::move(used));
      used_.push_back(lists_.back().data());
      packed_words_.push_back(std::make_unique<Packed>(matrix.data(), nullptr, outputs, words, strip));
      words_.push_back(&packed_words_.back()->weight());
      weight_.stored += words_.back()->stored;
      word_bytes_ += packed_words_.back()->bytes() + (outputs + lists_.back().size()) * sizeof(std::int32_t);
    }
    weight_.words = words_.data();
    weight_.used = used_.data();
    weight_.excess = excess_.data();
    return true;
  }

  using Packed = SparsePackedOf<std::uint32_t>;
  std::vector<std::unique_ptr<Packed>> packed_words_;
  std::vector<const sparse_words*> words_;
  std::vector<std::vector<std::uint32_t>> lists_;
  std::vector<const std::uint32_t*> used_;
  std::vector<std::int32_t> excess_;
  std::size_t word_bytes_ = 0;
  Kernel<int8_conv_call> kernel_;
  Buffer<std::int8_t> packed_;
  Buffer<float> scale_, bias_;
  int8_conv_weight weight_{};
};

std::unique_ptr<ConvState> pack_conv(const Bytes& weight, const Floats& scale, const std::optional<Floats>& bias,
                                     std::optional<float> input_scale, Pair stride, Four padding, Pair dilation,
                                     std::size_t groups, std::size_t strip, const std::string& isa) {
  return std::make_unique<ConvState>(weight, scale, bias, input_scale, stride, padding, dilation, groups, strip,
                                     parse(isa));
}

// A pruned convolution: a sparse weight [outputs / groups, channels / groups * kernel] for each group.
class SparseConvState {
 public:
  SparseConvState(const Floats& weight, const std::optional<Floats>& bias, std::size_t height, Pair stride,
                  Four padding, Pair dilation, std::size_t groups, Isa level)
      : kernel_(find<sparse_conv_call>(level)) {
    set_sizes(weight_, weight, stride, padding, dilation, groups);
    const std::size_t out = weight_.outputs / groups, in = inputs();
    for (std::size_t g = 0; g < groups; ++g) {
      packed_.push_back(std::make_unique<SparsePacked>(weight.data() + g * out * in,
                                                       bias ? bias->data() + g * out : nullptr, out, in, height));
      weights_.push_back(&packed_.back()->weight());
      stored_ += weights_.back()->stored;
      bytes_ += packed_.back()->bytes();
    }
    weight_.weights = weights_.data();
  }

  void into(std::uintptr_t x, std::uintptr_t y, std::size_t images, std::size_t height, std::size_t width,
            std::size_t pixels, int activation, int threads) const {
    const double work = static_cast<double>(pixels) * (static_cast<double>(stored_) * 8 + static_cast<double>(outputs()));
    run_images(kernel_, weight_, work, x, y, images, height, width, pixels, activation, threads);
  }

  Floats unpack() const {  // [outputs, channels / groups * kernel]
    Floats result({weight_.outputs, inputs()});
    for (std::size_t g = 0; g < packed_.size(); ++g) {
      packed_[g]->unpack(result.mutable_data() + g * weight_.outputs / weight_.groups * inputs());
    }
    return result;
  }

  std::size_t outputs() const { return weight_.outputs; }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return bytes_; }

 private:
  std::size_t inputs() const { return weight_.channels / weight_.groups * weight_.kernel[0] * weight_.kernel[1]; }

  Kernel<sparse_conv_call> kernel_;
  std::vector<std::unique_ptr<SparsePacked>> packed_;
  std::vector<const sparse_weight*> weights_;
  std::size_t stored_ = 0, bytes_ = 0;
  sparse_conv_weight weight_{};
};

std::unique_ptr<SparseConvState> pack_sparse_conv(const Floats& weight, const std::optional<Floats>& bias,
                                                  std::size_t height, Pair stride, Four padding, Pair dilation,
                                                  std::size_t groups, const std::string& isa) {
  return std::make_unique<SparseConvState>(weight, bias, height, stride, padding, dilation, groups, parse(isa));
}

}  // namespace

void bind_convolution(py::module_& m) {
  py::class_<ConvState>(m, "ConvState")
      .def("into", &ConvState::into)
      .def_property_readonly("outputs", &ConvState::outputs)
      .def_property_readonly("level", &ConvState::level)
      .def_property_readonly("nbytes", &ConvState::nbytes);
  m.def("pack_conv", &pack_conv);
  py::class_<SparseConvState>(m, "SparseConvState")
      .def("into", &SparseConvState::into)
      .def("unpack", &SparseConvState::unpack)
      .def_property_readonly("outputs", &SparseConvState::outputs)
      .def_property_readonly("level", &SparseConvState::level)
      .def_property_readonly("nbytes", &SparseConvState::nbytes);
  m.def("pack_sparse_conv", &pack_sparse_conv);
}

}  // namespace pycompress
