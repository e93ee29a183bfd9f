// Adapter of int4_linear.
#include <memory>

#include "../int4_linear/pack.h"
#include "bind.h"

namespace pycompress {
namespace {

class Int4State {
 public:
  using Call = int4_linear_call;

  Int4State(const int4_parts& parts, Isa level) : kernel_(find<int4_linear_call>(level)), packed_(parts) {}

  Bytes unpack() const {
    Bytes result({weight().out_features, weight().in_features});
    packed_.unpack(result.mutable_data());
    return result;
  }

  void run(int4_linear_call call) const {
    call.weight = &weight();
    const int4_linear_call all = call;
    const double per_row = static_cast<double>(weight().out_features) * static_cast<double>(weight().in_features) * 4;
    in_chunks(all.rows, per_row, kernel_.isa, all.threads, [&](std::size_t first, std::size_t rows) {
      call.rows = rows;
      call.x = all.x + first * weight().in_features;
      call.y = all.y + first * weight().out_features;
      kernel_.run(call);
    });
  }

  const int4_weight& weight() const { return packed_.weight(); }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return packed_.bytes(); }

 private:
  Kernel<int4_linear_call> kernel_;
  Int4Packed packed_;
};

using Halves = py::array_t<std::uint16_t, py::array::c_style>;  // fp16 as its bits
using Unsigned = py::array_t<std::uint8_t, py::array::c_style>;

// scale [out, groups] fp16, perhaps with zero_point; or multiplier [out, groups] with channel_scale [out].
std::unique_ptr<Int4State> pack_int4(const Bytes& weight, std::size_t group, const std::optional<Halves>& scale,
                                     const std::optional<Unsigned>& zero_point, const std::optional<Unsigned>& multiplier,
                                     const std::optional<Floats>& channel_scale, const std::optional<Floats>& bias,
                                     bool int8_activations, std::optional<float> input_scale, const std::string& isa) {
  int4_parts parts{};
  parts.out_features = static_cast<std::size_t>(weight.shape(0));
  parts.in_features = static_cast<std::size_t>(weight.shape(1));
  parts.group = group;
  parts.weight = weight.data();
  parts.scale = scale ? scale->data() : nullptr;
  parts.zero_point = zero_point ? zero_point->data() : nullptr;
  parts.multiplier = multiplier ? multiplier->data() : nullptr;
  parts.channel_scale = channel_scale ? channel_scale->data() : nullptr;
  parts.bias = bias ? bias->data() : nullptr;
  parts.int8_activations = int8_activations;
  parts.input_scale = input_scale.value_or(0.0f);
  const Isa level = parse(isa);
  py::gil_scoped_release release;
  return std::make_unique<Int4State>(parts, level);
}

}  // namespace

void bind_int4(py::module_& m) {
  py::class_<Int4State>(m, "Int4State")
      .def("linear", &linear<Int4State>)
      .def("linear_into", &linear_into<Int4State>)
      .def("unpack", &Int4State::unpack)
      .def_property_readonly("level", &Int4State::level)
      .def_property_readonly("nbytes", &Int4State::nbytes);
  m.def("pack_int4", &pack_int4);
}

}  // namespace pycompress
