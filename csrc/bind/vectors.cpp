// Adapters of quantize, scores, kth_magnitude and threshold.
#include <vector>

#include "../kth_magnitude/kth_magnitude.h"
#include "../quantize/quantize.h"
#include "../scores/scores.h"
#include "../threshold/threshold.h"
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

Floats scores(const Floats& x, int power, bool per_column, int threads, const std::string& isa) {
  scores_call call{};
  call.rows = static_cast<std::size_t>(x.shape(0));
  call.columns = static_cast<std::size_t>(x.shape(1));
  call.threads = threads;
  call.power = power;
  call.per_column = per_column;
  call.x = x.data();
  Floats result(per_column ? x.shape(1) : x.shape(0));
  call.scores = result.mutable_data();
  const auto kernel = find<scores_call>(parse(isa));
  py::gil_scoped_release release;
  kernel.run(call);
  return result;
}

float kth_magnitude(const std::vector<Floats>& arrays, std::uint64_t k, int threads, const std::string& isa) {
  std::vector<const float*> pointers;
  std::vector<std::size_t> sizes;
  for (const auto& array : arrays) {
    pointers.push_back(array.data());
    sizes.push_back(static_cast<std::size_t>(array.size()));
  }
  float value = 0;
  const kth_magnitude_call call{pointers.data(), sizes.data(), pointers.size(), k, threads, &value};
  const auto kernel = find<kth_magnitude_call>(parse(isa));
  py::gil_scoped_release release;
  kernel.run(call);
  return value;
}

std::uint64_t threshold(Floats& x, float limit, int threads, const std::string& isa) {
  std::uint64_t zeros = 0;
  const threshold_call call{static_cast<std::size_t>(x.size()), threads, limit, x.mutable_data(), &zeros};
  const auto kernel = find<threshold_call>(parse(isa));
  py::gil_scoped_release release;
  kernel.run(call);
  return zeros;
}

}  // namespace

void bind_vectors(py::module_& m) {
  m.def("quantize", &quantize, py::arg().noconvert(), py::arg().noconvert(), py::arg(), py::arg(), py::arg(), py::arg(),
        py::arg(), py::arg(), py::arg());
  m.def("scores", &scores);
  m.def("kth_magnitude", &kth_magnitude);
  m.def("threshold", &threshold, py::arg().noconvert(), py::arg(), py::arg(), py::arg());
}

}  // namespace pycompress
