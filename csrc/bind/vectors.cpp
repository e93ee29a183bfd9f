// Adapter of quantize.
#include "../quantize/quantize.h"
#include "bind.h"

namespace pycompress {
namespace {

Integer integer_type(const py::array& q) {
  const bool is_signed = q.dtype().kind() == 'i';
  return q.itemsize() == 1 ? (is_signed ? Integer::i8 : Integer::u8) : (is_signed ? Integer::i16 : Integer::u16);
}

// x -> q, or with `inverse` q -> x; both [groups, n] and contiguous.
void quantize(Floats& x, py::array& q, const Floats& scale, const Floats& zero_point, float low, float high,
              bool inverse, int threads, const std::string& isa) {
  quantize_call call{};
  call.groups = static_cast<std::size_t>(scale.size());
  call.n = static_cast<std::size_t>(x.shape(1));
  call.threads = threads;
  call.inverse = inverse;
  call.x = const_cast<float*>(x.data());  // written only by the inverse, into an array of its caller's own
  call.q = const_cast<void*>(q.data());
  call.type = integer_type(q);
  call.scale = scale.data();
  call.zero_point = zero_point.data();
  call.low = low;
  call.high = high;
  const auto kernel = find<quantize_call>(parse(isa));
  py::gil_scoped_release release;
  kernel.run(call);
}

}  // namespace

void bind_vectors(py::module_& m) {
  m.def("quantize", &quantize, py::arg().noconvert(), py::arg().noconvert(), py::arg(), py::arg(), py::arg(), py::arg(),
        py::arg(), py::arg(), py::arg());
}

}  // namespace pycompress
