// Adapter of limits: for bench/ alone.
#include "../limits/limits.h"

#include "bind.h"

namespace pycompress {
namespace {

double limits(const std::string& limit, const py::array_t<std::uint8_t, py::array::c_style>& data, std::size_t steps,
              int threads, const std::string& isa) {
  double done = 0;
  limits_call call{};
  call.limit = limit == "int8" ? Limit::int8 : limit == "fp32" ? Limit::fp32 : Limit::read;
  call.steps = steps;
  call.data = data.data();
  call.bytes = static_cast<std::size_t>(data.size());
  call.threads = threads;
  call.done = &done;
  const auto kernel = find<limits_call>(parse(isa));
  py::gil_scoped_release release;
  kernel.run(call);
  return done;
}

}  // namespace

void bind_limits(py::module_& m) {
  m.def("limits", &limits, "Do `steps` of what a limit is about; how many operations or bytes that was.");
}

}  // namespace pycompress
