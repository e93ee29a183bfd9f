// Adapter of binary_linear.
#include <memory>

#include "../binary_linear/pack.h"
#include "bind.h"

namespace pycompress {
namespace {

using BinaryState = LinearState<binary_linear_call, BinaryPacked, Bytes>;

std::unique_ptr<BinaryState> pack_binary(const Bytes& weight, const Floats& scale, const std::optional<Floats>& bias,
                                         const std::string& isa) {
  const Isa level = parse(isa);
  py::gil_scoped_release release;
  return std::make_unique<BinaryState>(0.25, level, static_cast<std::size_t>(weight.shape(0)),
                                       static_cast<std::size_t>(weight.shape(1)), weight.data(), scale.data(),
                                       bias ? bias->data() : nullptr);
}

}  // namespace

void bind_binary(py::module_& m) {
  BinaryState::bind(m, "BinaryState");
  m.def("pack_binary", &pack_binary);
}

}  // namespace pycompress
