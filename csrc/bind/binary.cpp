// Adapter of binary_linear.
#include <memory>

#include "../binary_linear/pack.h"
#include "bind.h"

namespace pycompress {
namespace {

class BinaryState {
 public:
  using Call = binary_linear_call;

  BinaryState(const Bytes& weight, const float* scale, const float* bias, Isa level)
      : kernel_(find<binary_linear_call>(level)),
        packed_(static_cast<std::size_t>(weight.shape(0)), static_cast<std::size_t>(weight.shape(1)), weight.data(), scale,
                bias) {}

  Bytes unpack() const {
    Bytes result({weight().out_features, weight().in_features});
    packed_.unpack(result.mutable_data());
    return result;
  }

  void run(binary_linear_call call) const {
    call.weight = &weight();
    const binary_linear_call all = call;
    const double per_row = static_cast<double>(weight().out_features) * static_cast<double>(weight().in_features) / 4;
    in_chunks(all.rows, per_row, kernel_.isa, all.threads, [&](std::size_t first, std::size_t rows) {
      call.rows = rows;
      call.x = all.x + first * weight().in_features;
      call.y = all.y + first * weight().out_features;
      kernel_.run(call);
    });
  }

  const binary_weight& weight() const { return packed_.weight(); }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return packed_.bytes(); }

 private:
  Kernel<binary_linear_call> kernel_;
  BinaryPacked packed_;
};

std::unique_ptr<BinaryState> pack_binary(const Bytes& weight, const Floats& scale, const std::optional<Floats>& bias,
                                         const std::string& isa) {
  const Isa level = parse(isa);
  py::gil_scoped_release release;
  return std::make_unique<BinaryState>(weight, scale.data(), bias ? bias->data() : nullptr, level);
}

}  // namespace

void bind_binary(py::module_& m) {
  py::class_<BinaryState>(m, "BinaryState")
      .def("linear", &linear<BinaryState>)
      .def("linear_into", &linear_into<BinaryState>)
      .def("unpack", &BinaryState::unpack)
      .def_property_readonly("level", &BinaryState::level)
      .def_property_readonly("nbytes", &BinaryState::nbytes);
  m.def("pack_binary", &pack_binary);
}

}  // namespace pycompress
