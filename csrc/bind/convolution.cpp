// Adapters of int8_conv.
#include <array>
#include <memory>

#include "../buffer.h"
#include "../int8_conv/int8_conv.h"
#include "bind.h"

namespace pycompress {
namespace {

// Sizes of a convolution: kernel, stride, dilation (height, width), padding (top, bottom, left, right).
using Pair = std::array<std::size_t, 2>;
using Four = std::array<std::size_t, 4>;

class ConvState {
 public:
  // weight [outputs, channels / groups, height, width]
  ConvState(const Bytes& weight, const Floats& scale, const std::optional<Floats>& bias,
            std::optional<float> input_scale, Pair stride, Four padding, Pair dilation, std::size_t groups, Isa level)
      : kernel_(find<int8_conv_call>(level)), packed_(0), scale_(scale.size()), bias_(scale.size()) {
    std::copy_n(scale.data(), scale.size(), scale_.data());
    if (bias) std::copy_n(bias->data(), bias->size(), bias_.data());
    weight_.outputs = static_cast<std::size_t>(weight.shape(0));
    weight_.channels = static_cast<std::size_t>(weight.shape(1)) * groups;
    weight_.groups = groups;
    for (std::size_t i = 0; i < 2; ++i) {
      weight_.kernel[i] = static_cast<std::size_t>(weight.shape(2 + static_cast<py::ssize_t>(i)));
      weight_.stride[i] = stride[i];
      weight_.dilation[i] = dilation[i];
    }
    std::copy(padding.begin(), padding.end(), weight_.padding);
    weight_.scale = scale_.data();
    weight_.bias = bias_.data();
    weight_.input_scale = input_scale.value_or(0.0f);
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

  // From and to addresses of contiguous fp32 images; a call that would run long is cut between images.
  void into(std::uintptr_t x, std::uintptr_t y, std::size_t images, std::size_t height, std::size_t width,
            std::size_t pixels, int activation, int threads) const {
    const double work = static_cast<double>(pixels * weight_.outputs) *
                        static_cast<double>(weight_.channels / weight_.groups * weight_.kernel[0] * weight_.kernel[1]);
    const double share = (kernel_.isa == Isa::scalar ? 2e7 : 5e8) * std::max(1, threads) / std::max(work, 1.0);
    const std::size_t chunk = share >= static_cast<double>(images) ? images : std::max<std::size_t>(1, static_cast<std::size_t>(share));
    for (std::size_t first = 0; first < images; first += chunk) {
      {
        py::gil_scoped_release release;
        int8_conv_call call{};
        call.weight = &weight_;
        call.images = std::min(chunk, images - first);
        call.height = height;
        call.width = width;
        call.threads = threads;
        call.activation = activation;
        call.x = reinterpret_cast<const float*>(x) + first * weight_.channels * height * width;
        call.y = reinterpret_cast<float*>(y) + first * weight_.outputs * pixels;
        kernel_.run(call);
      }
      if (chunk < images && PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
  }

  std::size_t outputs() const { return weight_.outputs; }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return packed_.bytes() + scale_.bytes() + bias_.bytes(); }

 private:
  Kernel<int8_conv_call> kernel_;
  Buffer<std::int8_t> packed_;
  Buffer<float> scale_, bias_;
  int8_conv_weight weight_{};
};

std::unique_ptr<ConvState> pack_conv(const Bytes& weight, const Floats& scale, const std::optional<Floats>& bias,
                                     std::optional<float> input_scale, Pair stride, Four padding, Pair dilation,
                                     std::size_t groups, const std::string& isa) {
  return std::make_unique<ConvState>(weight, scale, bias, input_scale, stride, padding, dilation, groups, parse(isa));
}

}  // namespace

void bind_convolution(py::module_& m) {
  py::class_<ConvState>(m, "ConvState")
      .def("into", &ConvState::into)
      .def_property_readonly("outputs", &ConvState::outputs)
      .def_property_readonly("level", &ConvState::level)
      .def_property_readonly("nbytes", &ConvState::nbytes);
  m.def("pack_conv", &pack_conv);
}

}  // namespace pycompress
