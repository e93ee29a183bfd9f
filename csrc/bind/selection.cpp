// Adapters of scores, kth_magnitude, threshold and nm_mask. Weights are contiguous arrays of float32, float16, or uint16:
// the bits of bfloat16, a type that NumPy lacks.
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "../kth_magnitude/kth_magnitude.h"
#include "../nm_mask/nm_mask.h"
#include "../scores/scores.h"
#include "../threshold/threshold.h"
#include "bind.h"

namespace pycompress {
namespace {

Element element_type(const py::array& x) {
  if (x.itemsize() == 4) return Element::f32;
  return x.dtype().kind() == 'f' ? Element::f16 : Element::bf16;
}

// L1 and L2 norms of blocks, each [ceil(rows / height), ceil(columns / width)].
std::pair<Floats, Floats> scores(const py::array& x, std::size_t height, std::size_t width,
                                 const std::optional<py::array>& g, const std::optional<Floats>& factor, int threads,
                                 const std::string& isa) {
  scores_call call{};
  call.rows = static_cast<std::size_t>(x.shape(0));
  call.columns = static_cast<std::size_t>(x.shape(1));
  call.height = height;
  call.width = width;
  call.threads = threads;
  call.type = element_type(x);
  call.x = x.data();
  call.g = g ? g->data() : nullptr;
  call.factor = factor ? factor->data() : nullptr;
  const std::size_t down = (call.rows + height - 1) / height, across = (call.columns + width - 1) / width;
  Floats l1({down, across}), l2({down, across});
  call.l1 = l1.mutable_data();
  call.l2 = l2.mutable_data();
  const auto kernel = find<scores_call>(parse(isa));
  {
    py::gil_scoped_release release;
    kernel.run(call);
  }
  return {std::move(l1), std::move(l2)};
}

// The k-th magnitude and how it was found (KthWay).
std::pair<float, int> kth_magnitude(const std::vector<py::array>& arrays, std::uint64_t k, int threads,
                                    const std::string& isa) {
  std::vector<const void*> pointers;
  std::vector<std::size_t> sizes;
  std::vector<Element> types;
  for (const auto& array : arrays) {
    pointers.push_back(array.data());
    sizes.push_back(static_cast<std::size_t>(array.size()));
    types.push_back(element_type(array));
  }
  float value = 0;
  KthWay way{};
  const kth_magnitude_call call{pointers.data(), sizes.data(), types.data(), pointers.size(), k, threads, &value, &way};
  const auto kernel = find<kth_magnitude_call>(parse(isa));
  {
    py::gil_scoped_release release;
    kernel.run(call);
  }
  return {value, static_cast<int>(way)};
}

// One coding of all runs, [codes] uint8 and [values] of the type of x.
std::pair<py::array, py::array> joined(const std::vector<PackedRun>& runs, const py::dtype& dtype) {
  std::vector<std::uint8_t> gaps, values;
  std::uint64_t since = 0;  // zeros since the last value
  for (const PackedRun& run : runs) {
    since += run.leading;
    if (run.values.empty()) continue;
    gaps.insert(gaps.end(), since / 255, 255);
    gaps.push_back(static_cast<std::uint8_t>(since % 255));
    gaps.insert(gaps.end(), run.gaps.begin(), run.gaps.end());
    values.insert(values.end(), run.values.begin(), run.values.end());
    since = run.trailing;
  }
  py::array_t<std::uint8_t> codes(static_cast<py::ssize_t>(gaps.size()));
  py::array entries(dtype, std::vector<py::ssize_t>{static_cast<py::ssize_t>(values.size()) / dtype.itemsize()});
  if (!gaps.empty()) std::memcpy(codes.mutable_data(), gaps.data(), gaps.size());
  if (!values.empty()) std::memcpy(entries.mutable_data(), values.data(), values.size());
  return {std::move(codes), std::move(entries)};
}

// Counts what is not above the limit and clears it (`write`), and fills a mask and a bitmap where they are given; -1 where
// there is a NaN.
std::int64_t threshold(const py::array& x, float limit, bool write, std::optional<Bytes> mask,
                        std::optional<py::array_t<std::uint8_t>> bitmap, int threads, const std::string& isa) {
  std::uint64_t zeros = 0;
  bool nan = false;
  threshold_call call{};
  call.n = static_cast<std::size_t>(x.size());
  call.threads = threads;
  call.type = element_type(x);
  call.threshold = limit;
  call.write = write;
  call.x = const_cast<void*>(x.data());
  call.mask = mask ? mask->mutable_data() : nullptr;
  call.bitmap = bitmap ? bitmap->mutable_data() : nullptr;
  call.zeros = &zeros;
  call.nan = &nan;
  const auto kernel = find<threshold_call>(parse(isa));
  py::gil_scoped_release release;
  kernel.run(call);
  return nan ? -1 : static_cast<std::int64_t>(zeros);
}

// The same with gaps and values; whether there is a NaN comes last.
std::tuple<py::array, py::array, bool> packed_above(const py::array& x, float limit, std::optional<Bytes> mask,
                                             std::optional<py::array_t<std::uint8_t>> bitmap, int threads,
                                             const std::string& isa) {
  std::uint64_t zeros = 0;
  bool nan = false;
  std::vector<PackedRun> runs;
  threshold_call call{};
  call.n = static_cast<std::size_t>(x.size());
  call.threads = threads;
  call.type = element_type(x);
  call.threshold = limit;
  call.x = const_cast<void*>(x.data());  // only read
  call.mask = mask ? mask->mutable_data() : nullptr;
  call.bitmap = bitmap ? bitmap->mutable_data() : nullptr;
  call.runs = &runs;
  call.zeros = &zeros;
  call.nan = &nan;
  const auto kernel = find<threshold_call>(parse(isa));
  {
    py::gil_scoped_release release;
    kernel.run(call);
  }
  auto [gaps, values] = joined(runs, x.dtype());
  return {std::move(gaps), std::move(values), nan};
}

// Fills the mask; returns whether there is a NaN.
bool nm_mask(const py::array& x, unsigned n, unsigned m, Bytes& mask, int threads, const std::string& isa) {
  nm_mask_call call{};
  call.rows = static_cast<std::size_t>(x.shape(0));
  call.columns = static_cast<std::size_t>(x.shape(1));
  call.n = n;
  call.m = m;
  call.threads = threads;
  call.type = element_type(x);
  call.x = x.data();
  bool nan = false;
  call.mask = mask.mutable_data();
  call.nan = &nan;
  const auto kernel = find<nm_mask_call>(parse(isa));
  py::gil_scoped_release release;
  kernel.run(call);
  return nan;
}

}  // namespace

void bind_selection(py::module_& m) {
  m.def("scores", &scores);
  m.def("kth_magnitude", &kth_magnitude);
  m.def("threshold", &threshold, py::arg().noconvert(), py::arg(), py::arg(), py::arg().noconvert(),
        py::arg().noconvert(), py::arg(), py::arg());
  m.def("packed_above", &packed_above, py::arg().noconvert(), py::arg(), py::arg().noconvert(),
        py::arg().noconvert(), py::arg(), py::arg());
  m.def("nm_mask", &nm_mask, py::arg().noconvert(), py::arg(), py::arg(), py::arg().noconvert(), py::arg(), py::arg());
}

}  // namespace pycompress
