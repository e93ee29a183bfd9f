// Adapter of codebook_linear.
#include <memory>

#include "../codebook_linear/pack.h"
#include "bind.h"

namespace pycompress {
namespace {

class CodebookState {
 public:
  using Call = codebook_linear_call;

  CodebookState(const codebook_parts& parts, Isa level) : kernel_(find<codebook_linear_call>(level)), packed_(parts) {}

  Bytes unpack() const {
    Bytes result({weight().out_features, weight().in_features});
    packed_.unpack(result.mutable_data());
    return result;
  }

  void run(codebook_linear_call call) const {
    call.weight = &weight();
    const codebook_linear_call all = call;
    const double per_row = static_cast<double>(weight().out_features) * static_cast<double>(weight().in_features) * 2;
    in_chunks(all.rows, per_row, kernel_.isa, all.threads, [&](std::size_t first, std::size_t rows) {
      call.rows = rows;
      call.x = all.x + first * weight().in_features;
      call.y = all.y + first * weight().out_features;
      kernel_.run(call);
    });
  }

  const codebook_weight& weight() const { return packed_.weight(); }
  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return packed_.bytes(); }

 private:
  Kernel<codebook_linear_call> kernel_;
  CodebookPacked packed_;
};

using Halves = py::array_t<std::uint16_t, py::array::c_style>;  // fp16 as its bits

// codes [out, in], table [2^bits]; scale [out, groups] fp16, or channel_scale [out].
std::unique_ptr<CodebookState> pack_codebook(const Bytes& codes, const Bytes& table, int bits, std::size_t group,
                                             const std::optional<Halves>& scale, const std::optional<Floats>& channel_scale,
                                             const std::optional<Floats>& bias, std::optional<float> input_scale,
                                             const std::string& isa) {
  codebook_parts parts{};
  parts.out_features = static_cast<std::size_t>(codes.shape(0));
  parts.in_features = static_cast<std::size_t>(codes.shape(1));
  parts.bits = bits;
  parts.group = group;
  parts.codes = codes.data();
  parts.table = table.data();
  parts.scale = scale ? scale->data() : nullptr;
  parts.channel_scale = channel_scale ? channel_scale->data() : nullptr;
  parts.bias = bias ? bias->data() : nullptr;
  parts.input_scale = input_scale.value_or(0.0f);
  const Isa level = parse(isa);
  py::gil_scoped_release release;
  return std::make_unique<CodebookState>(parts, level);
}

}  // namespace

void bind_codebook(py::module_& m) {
  py::class_<CodebookState>(m, "CodebookState")
      .def("linear", &linear<CodebookState>)
      .def("linear_into", &linear_into<CodebookState>)
      .def("unpack", &CodebookState::unpack)
      .def_property_readonly("level", &CodebookState::level)
      .def_property_readonly("nbytes", &CodebookState::nbytes);
  m.def("pack_codebook", &pack_codebook);
}

}  // namespace pycompress
