// Adapter of bf16_linear.
#include <memory>

#include "../bf16_linear/pack.h"
#include "bind.h"

namespace pycompress {
namespace {

using Bf16State = LinearState<bf16_linear_call, Bf16Packed, Floats>;

std::unique_ptr<Bf16State> pack_bf16(const Floats& weight, const std::optional<Floats>& bias, const std::string& isa) {
  const Isa level = parse(isa);
  py::gil_scoped_release release;
  return std::make_unique<Bf16State>(0.25, level, weight.data(), bias ? bias->data() : nullptr,
                                     static_cast<std::size_t>(weight.shape(0)), static_cast<std::size_t>(weight.shape(1)));
}

}  // namespace

void bind_bf16(py::module_& m) {
  Bf16State::bind(m, "Bf16State");
  m.def("pack_bf16", &pack_bf16);
}

}  // namespace pycompress
