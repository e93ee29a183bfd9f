// Adapters of convolutions on images [images, height, width, channels]: int8_linear on patches, and int8_depthwise.
#include <array>
#include <memory>
#include <optional>

#include "../buffer.h"
#include "../int8_depthwise/int8_depthwise.h"
#include "../int8_linear/pack.h"
#include "bind.h"

namespace pycompress {
namespace {

using Pair = std::array<std::size_t, 2>;  // height, width

struct Geometry {
  Pair kernel, stride, dilation, padding;  // padding: top, left
};

// What a call has beside the weight: addresses of contiguous images. Kinds: 0 fp32, 2 int8.
struct Images {
  std::uintptr_t x, y;
  std::size_t images, height, width, out_height, out_width;
  int input, output;
  float output_scale;
  int activation, threads;
};

// Runs a call for chunks of images of about 20 ms.
template <class Run>
void in_chunks_of_images(const Images& all, std::size_t image, std::size_t out_image, double operations, Isa isa, Run&& run) {
  const double share = (isa == Isa::scalar ? 2e7 : 5e8) * std::max(1, all.threads) / std::max(operations, 1.0);
  const double most = static_cast<double>(all.images);
  const std::size_t chunk = share >= most ? all.images : std::max<std::size_t>(1, static_cast<std::size_t>(share));
  for (std::size_t first = 0; first < all.images; first += chunk) {
    {
      py::gil_scoped_release release;
      Images part = all;
      part.images = std::min(chunk, all.images - first);
      part.x += first * image * output_bytes(static_cast<Output>(all.input));
      part.y += first * out_image * output_bytes(static_cast<Output>(all.output));
      run(part);
    }
    if (chunk < all.images && PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

class DenseState {
 public:
  // weight [outputs, kernel height * kernel width * channels]
  DenseState(const Bytes& weight, const Floats& scale, const std::optional<Floats>& bias,
             std::optional<float> input_scale, const Geometry& geometry, Isa level)
      : kernel_(find<int8_linear_call>(level)), geometry_(geometry), packed_(packed(weight)) {
    packed_.set(scale.data(), bias ? bias->data() : nullptr, input_scale.value_or(0.0f));
  }

  void into(const Images& all) const {
    const int8_weight* weight = &packed_.weight();
    const std::size_t channels = weight->in_features / (geometry_.kernel[0] * geometry_.kernel[1]);
    const std::size_t pixels = all.out_height * all.out_width;
    const double operations = static_cast<double>(pixels * weight->out_features) * static_cast<double>(weight->in_features);
    const auto run = [&](const Images& part) {
      const Geometry& g = geometry_;
      const int8_patches patches{part.images, all.height, all.width, channels, {g.kernel[0], g.kernel[1]},
                                 {g.stride[0], g.stride[1]}, {g.dilation[0], g.dilation[1]}, g.padding[0], g.padding[1],
                                 all.out_height, all.out_width};
      int8_linear_call call{};
      call.weights = &weight;
      call.activations = &part.activation;
      call.layers = 1;
      call.rows = part.images * pixels;
      call.threads = part.threads;
      if (part.input == 0) call.x = reinterpret_cast<const float*>(part.x);
      if (part.input == 2) call.q = reinterpret_cast<const std::int8_t*>(part.x);
      call.output = static_cast<Output>(part.output);
      call.y = reinterpret_cast<void*>(part.y);
      call.output_scale = part.output_scale;
      call.patches = &patches;
      kernel_.run(call);
    };
    in_chunks_of_images(all, all.height * all.width * channels, pixels * weight->out_features, operations, kernel_.isa, run);
  }

  std::size_t outputs() const { return packed_.weight().out_features; }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return packed_.bytes(); }

 private:
  static Int8Packed packed(const Bytes& weight) {
    const auto out = static_cast<std::size_t>(weight.shape(0)), in = static_cast<std::size_t>(weight.shape(1));
    const std::int8_t* from = weight.data();
    return {out, in, [=](std::size_t o, std::size_t i) { return from[o * in + i]; }};
  }

  Kernel<int8_linear_call> kernel_;
  Geometry geometry_;
  Int8Packed packed_;
};

class DepthwiseState {
 public:
  // weight [channels, kernel height, kernel width]
  DepthwiseState(const Bytes& weight, const Floats& scale, const std::optional<Floats>& bias,
                 std::optional<float> input_scale, const Geometry& geometry, Isa level)
      : kernel_(find<int8_depthwise_call>(level)), packed_(0), scale_(in_blocks(scale.size())), bias_(in_blocks(scale.size())) {
    std::copy_n(scale.data(), scale.size(), scale_.data());
    if (bias) std::copy_n(bias->data(), bias->size(), bias_.data());
    weight_.channels = static_cast<std::size_t>(weight.shape(0));
    for (std::size_t i = 0; i < 2; ++i) {
      weight_.kernel[i] = geometry.kernel[i];
      weight_.stride[i] = geometry.stride[i];
      weight_.dilation[i] = geometry.dilation[i];
    }
    weight_.top = geometry.padding[0];
    weight_.left = geometry.padding[1];
    weight_.scale = scale_.data();
    weight_.bias = bias_.data();
    weight_.input_scale = input_scale.value_or(0.0f);
    std::size_t bytes = 0;
    int8_depthwise_call call{};
    call.weight = &weight_;
    call.from = weight.data();
    call.bytes = &bytes;
    kernel_.run(call);
    packed_ = Buffer<std::int8_t>(bytes);
    call.to = packed_.data();
    kernel_.run(call);
    weight_.packed = packed_.data();
  }

  void into(const Images& all) const {
    const std::size_t channels = weight_.channels, pixels = all.out_height * all.out_width;
    const double operations = static_cast<double>(pixels * channels) * static_cast<double>(weight_.kernel[0] * weight_.kernel[1]) * 8;
    const auto run = [&](const Images& part) {
      int8_depthwise_call call{};
      call.weight = &weight_;
      call.images = part.images;
      call.height = part.height;
      call.width = part.width;
      call.out_height = part.out_height;
      call.out_width = part.out_width;
      call.threads = part.threads;
      call.activation = part.activation;
      if (part.input == 0) call.x = reinterpret_cast<const float*>(part.x);
      if (part.input == 2) call.q = reinterpret_cast<const std::int8_t*>(part.x);
      call.output = static_cast<Output>(part.output);
      call.y = reinterpret_cast<void*>(part.y);
      call.output_scale = part.output_scale;
      kernel_.run(call);
    };
    in_chunks_of_images(all, all.height * all.width * channels, pixels * channels, operations, kernel_.isa, run);
  }

  std::size_t outputs() const { return weight_.channels; }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return packed_.bytes() + scale_.bytes() + bias_.bytes(); }

 private:
  static std::size_t in_blocks(py::ssize_t channels) { return (static_cast<std::size_t>(channels) + 63) / 64 * 64; }

  Kernel<int8_depthwise_call> kernel_;
  Buffer<std::int8_t> packed_;
  Buffer<float> scale_, bias_;
  int8_depthwise_weight weight_{};
};

template <class State>
std::unique_ptr<State> pack(const Bytes& weight, const Floats& scale, const std::optional<Floats>& bias,
                            std::optional<float> input_scale, Pair kernel, Pair stride, Pair padding, Pair dilation,
                            const std::string& isa) {
  return std::make_unique<State>(weight, scale, bias, input_scale, Geometry{kernel, stride, dilation, padding}, parse(isa));
}

template <class State>
void bind(py::module_& m, const char* name) {
  py::class_<State>(m, name)
      .def("into",
           [](const State& state, std::uintptr_t x, std::uintptr_t y, std::size_t images, std::size_t height,
              std::size_t width, std::size_t out_height, std::size_t out_width, int activation, int threads, int input,
              int output, float output_scale) {
             state.into({x, y, images, height, width, out_height, out_width, input, output, output_scale, activation, threads});
           })
      .def_property_readonly("outputs", &State::outputs)
      .def_property_readonly("level", &State::level)
      .def_property_readonly("nbytes", &State::nbytes);
}

}  // namespace

void bind_channels_last(py::module_& m) {
  bind<DenseState>(m, "DenseState");
  bind<DepthwiseState>(m, "DepthwiseState");
  m.def("pack_dense", &pack<DenseState>);
  m.def("pack_depthwise", &pack<DepthwiseState>);
}

}  // namespace pycompress
