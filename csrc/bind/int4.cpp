// Adapter of int4_linear.
#include <memory>

#include "../int4_linear/pack.h"
#include "bind.h"

namespace pycompress {
namespace {

using Int4State = LinearState<int4_linear_call, Int4Packed, Bytes>;

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
  return std::make_unique<Int4State>(4.0, level, parts);
}

}  // namespace

void bind_int4(py::module_& m) {
  Int4State::bind(m, "Int4State");
  m.def("pack_int4", &pack_int4);
}

}  // namespace pycompress
