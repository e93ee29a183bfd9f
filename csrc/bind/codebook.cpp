// Adapter of codebook_linear.
#include <memory>

#include "../codebook_linear/pack.h"
#include "bind.h"

namespace pycompress {
namespace {

using CodebookState = LinearState<codebook_linear_call, CodebookPacked, Bytes>;

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
  return std::make_unique<CodebookState>(2.0, level, parts);
}

}  // namespace

void bind_codebook(py::module_& m) {
  CodebookState::bind(m, "CodebookState");
  m.def("pack_codebook", &pack_codebook);
}

}  // namespace pycompress
