// Adapter of bf16_linear.
#include <memory>

#include "../bf16_linear/pack.h"
#include "bind.h"

namespace pycompress {
namespace {

class Bf16State {
 public:
  using Call = bf16_linear_call;

  Bf16State(const Floats& weight, const float* bias, Isa level)
      : kernel_(find<bf16_linear_call>(level)),
        packed_(weight.data(), bias, static_cast<std::size_t>(weight.shape(0)), static_cast<std::size_t>(weight.shape(1))) {}

  Floats unpack() const {
    Floats result({weight().out_features, weight().in_features});
    packed_.unpack(result.mutable_data());
    return result;
  }

  void run(bf16_linear_call call) const {
    call.weight = &weight();
    const bf16_linear_call all = call;
    const double per_row = static_cast<double>(weight().out_features) * static_cast<double>(weight().in_features) / 4;
    in_chunks(all.rows, per_row, kernel_.isa, all.threads, [&](std::size_t first, std::size_t rows) {
      call.rows = rows;
      call.x = all.x + first * weight().in_features;
      call.y = all.y + first * weight().out_features;
      kernel_.run(call);
    });
  }

  const bf16_weight& weight() const { return packed_.weight(); }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return packed_.bytes(); }

 private:
  Kernel<bf16_linear_call> kernel_;
  Bf16Packed packed_;
};

std::unique_ptr<Bf16State> pack_bf16(const Floats& weight, const std::optional<Floats>& bias, const std::string& isa) {
  const Isa level = parse(isa);
  py::gil_scoped_release release;
  return std::make_unique<Bf16State>(weight, bias ? bias->data() : nullptr, level);
}

}  // namespace

void bind_bf16(py::module_& m) {
  py::class_<Bf16State>(m, "Bf16State")
      .def("linear", &linear<Bf16State>)
      .def("linear_into", &linear_into<Bf16State>)
      .def("unpack", &Bf16State::unpack)
      .def_property_readonly("level", &Bf16State::level)
      .def_property_readonly("nbytes", &Bf16State::nbytes);
  m.def("pack_bf16", &pack_bf16);
}

}  // namespace pycompress
