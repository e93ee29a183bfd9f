// Adapter of spmm.
#include <vector>

#include "../buffer.h"
#include "../spmm/spmm.h"
#include "bind.h"

namespace pycompress {
namespace {

constexpr std::size_t window = 1024;  // rows that are sorted together

// A matrix [rows, inner] in compressed rows; its parts were checked by the caller.
class CsrState {
 public:
  // starts [rows + 1] uint64, indices uint16 or uint32, values float32 or float64; all contiguous.
  CsrState(const py::array& starts, const py::array& indices, const py::array& values, std::size_t inner,
           const std::string& isa)
      : kernel_(find<spmm_call>(parse(isa))),
        rows_(static_cast<std::size_t>(starts.size()) - 1),
        inner_(inner),
        entries_(static_cast<std::size_t>(values.size())),
        index_bytes_(static_cast<std::size_t>(indices.itemsize())),
        value_bytes_(static_cast<std::size_t>(values.itemsize())),
        starts_(rows_ + 1),
        order_(rows_),
        indices_(entries_ * index_bytes_),
        values_(entries_ * value_bytes_) {
    const auto* given = static_cast<const std::uint64_t*>(starts.data());
    const auto count = [given](std::size_t row) { return given[row + 1] - given[row]; };
    std::uint32_t* order = order_.data();
    for (std::size_t row = 0; row < rows_; ++row) order[row] = static_cast<std::uint32_t>(row);
    for (std::size_t row = 0; row < rows_; row += window) {
      std::stable_sort(order + row, order + std::min(rows_, row + window),
                       [&](std::uint32_t a, std::uint32_t b) { return count(a) > count(b); });
    }
    for (std::size_t i = 0; i < rows_; ++i) starts_.data()[i + 1] = starts_.data()[i] + count(order[i]);
    each_run(given, [&](std::size_t from, std::size_t to, std::size_t step, std::size_t entries) {
      move(index_bytes_, indices_.data(), to, step, indices.data(), from, 1, entries);
      move(value_bytes_, values_.data(), to, step, values.data(), from, 1, entries);
    });
  }

  // y [rows, columns] = this . b [inner, columns], from and to addresses of contiguous arrays. In pieces of about
  // 20 ms, first by columns: then nothing is done twice.
  void into(std::uintptr_t b, std::uintptr_t y, std::size_t columns, int threads) {
    const double budget = (kernel_.isa == Isa::scalar ? 2e7 : 5e8) / 8 * std::max(1, threads);
    const double per_column = static_cast<double>(entries_ + rows_) + 1;
    const std::size_t in_budget = static_cast<std::size_t>(std::min(budget / per_column, 1e15)) / 64 * 64;
    const std::size_t width = std::min(columns, std::max<std::size_t>(64, in_budget));
    const double per_row_cut = 4 * budget / static_cast<double>(std::max<std::size_t>(width, 1));
    const auto cut = static_cast<std::size_t>(std::max(per_row_cut, 1.0));  // entries and rows of a piece
    for (std::size_t column = 0; column < columns; column += width) {
      for (std::size_t row = 0; row < rows_;) {
        const std::size_t end = last_row(row, cut);
        {
          py::gil_scoped_release release;
          run(b, y, columns, column, std::min(width, columns - column), row, end, threads);
        }
        if ((width < columns || end - row < rows_) && PyErr_CheckSignals() != 0) throw py::error_already_set();
        row = end;
      }
    }
  }

  // The product with a contiguous b [inner, columns] or [inner].
  py::array multiply(const py::array& b, int threads) {
    const bool flat = b.ndim() == 1;
    const py::ssize_t columns = flat ? 1 : b.shape(1);
    auto shape = std::vector<py::ssize_t>{static_cast<py::ssize_t>(rows_)};
    if (!flat) shape.push_back(columns);
    py::array y(b.dtype(), shape);
    into(reinterpret_cast<std::uintptr_t>(b.data()), reinterpret_cast<std::uintptr_t>(y.mutable_data()),
         static_cast<std::size_t>(columns), threads);
    return y;
  }

  // starts, indices and values with the rows in their own order.
  py::tuple unpack() {
    py::array_t<std::uint64_t> starts(static_cast<py::ssize_t>(rows_ + 1));
    std::uint64_t* given = starts.mutable_data();
    std::fill(given, given + rows_ + 1, 0);
    for (std::size_t i = 0; i < rows_; ++i) given[order_.data()[i] + 1] = starts_.data()[i + 1] - starts_.data()[i];
    for (std::size_t row = 0; row < rows_; ++row) given[row + 1] += given[row];
    const auto size = static_cast<py::ssize_t>(entries_);
    py::array indices(index_bytes_ == 4 ? py::dtype::of<std::uint32_t>() : py::dtype::of<std::uint16_t>(), size);
    py::array values(value_bytes_ == 8 ? py::dtype::of<double>() : py::dtype::of<float>(), size);
    void* index = indices.mutable_data();
    void* value = values.mutable_data();
    each_run(given, [&](std::size_t to, std::size_t from, std::size_t step, std::size_t entries) {
      move(index_bytes_, index, to, 1, indices_.data(), from, step, entries);
      move(value_bytes_, value, to, 1, values_.data(), from, step, entries);
    });
    return py::make_tuple(starts, indices, values);
  }

  std::string level() const { return isa_name(kernel_.isa); }
  std::size_t nbytes() const { return starts_.bytes() + order_.bytes() + indices_.bytes() + values_.bytes(); }

 private:
  // body(first entry as given, first entry as it lies here, step from one to the next here, entries): one or two runs
  // of entries for each row, as spmm.h lays them out.
  template <class Body>
  void each_run(const std::uint64_t* given, Body&& body) {
    const std::uint64_t* starts = starts_.data();
    for (std::size_t row = 0; row < rows_; ++row) {
      const std::size_t from = given[order_.data()[row]], o = row % spmm_group, group = row - o;
      if (group + spmm_group > rows_) {
        body(from, starts[row], 1, starts[row + 1] - starts[row]);
        continue;
      }
      const std::size_t common = spmm_common(starts, group), rest = spmm_rest(starts, group, o, common);
      body(from, starts[group] + o, spmm_group, common);
      body(from + common, rest, 1, spmm_rest(starts, group, o + 1, common) - rest);
    }
  }

  static void move(std::size_t bytes, void* to, std::size_t to_first, std::size_t to_step, const void* from,
                   std::size_t from_first, std::size_t from_step, std::size_t count) {
    const auto go = [&](auto kind) {
      using T = decltype(kind);
      T* a = static_cast<T*>(to) + to_first;
      const T* b = static_cast<const T*>(from) + from_first;
      for (std::size_t i = 0; i < count; ++i) a[i * to_step] = b[i * from_step];
    };
    bytes == 2 ? go(std::uint16_t{}) : bytes == 4 ? go(std::uint32_t{}) : go(std::uint64_t{});
  }

  // The end of the rows from `row` on that together have about `cut` entries and rows.
  std::size_t last_row(std::size_t row, std::size_t cut) {
    const std::uint64_t* starts = starts_.data();
    if (starts[rows_] - starts[row] + (rows_ - row) <= cut) return rows_;
    std::size_t low = row + 1, high = rows_;
    while (low < high) {
      const std::size_t middle = low + (high - low) / 2;
      if (starts[middle] - starts[row] + (middle - row) < cut) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return std::min(rows_, (low + spmm_group - 1) / spmm_group * spmm_group);
  }

  void run(std::uintptr_t b, std::uintptr_t y, std::size_t stride, std::size_t column, std::size_t columns,
           std::size_t row, std::size_t end, int threads) {
    spmm_call call{};
    call.rows = end - row;
    call.inner = inner_;
    call.columns = columns;
    call.stride = stride;
    call.threads = threads;
    call.is_double = value_bytes_ == 8;
    call.wide = index_bytes_ == 4;
    call.starts = starts_.data() + row;
    call.order = order_.data() + row;
    call.indices = indices_.data();
    call.values = values_.data();
    call.b = reinterpret_cast<const void*>(b + column * value_bytes_);
    call.y = reinterpret_cast<void*>(y + column * value_bytes_);
    kernel_.run(call);
  }

  Kernel<spmm_call> kernel_;
  std::size_t rows_, inner_, entries_, index_bytes_, value_bytes_;
  Buffer<std::uint64_t> starts_;
  Buffer<std::uint32_t> order_;
  Buffer<char> indices_;
  Buffer<char> values_;
};

}  // namespace

void bind_spmm(py::module_& m) {
  py::class_<CsrState>(m, "CsrState")
      .def(py::init<const py::array&, const py::array&, const py::array&, std::size_t, const std::string&>())
      .def("multiply", &CsrState::multiply)
      .def("into", &CsrState::into)
      .def("unpack", &CsrState::unpack)
      .def_property_readonly("level", &CsrState::level)
      .def_property_readonly("nbytes", &CsrState::nbytes);
}

}  // namespace pycompress
