// pycompress._native: the levels, and the adapters of all operations.
#include <map>
#include <stdexcept>
#include <vector>

#include "bind.h"

namespace pycompress {

Isa parse(const std::string& name) {
  for (int i = 0; i < isa_count; ++i) {
    const auto isa = static_cast<Isa>(i);
    if (name == isa_name(isa) && cpu_has(isa)) return isa;
  }
  throw std::invalid_argument("no such level on this CPU: " + name);
}

namespace {

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (int i = 0; i < isa_count; ++i) {
    const auto isa = static_cast<Isa>(i);
    bool exists = false;
#define KERNEL(operation, target) exists = exists || isa == Isa::target;
#include "../kernels.def"
#undef KERNEL
    if (exists && cpu_has(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

std::map<std::string, std::vector<std::string>> kernels() {
  std::map<std::string, std::vector<std::string>> table;
#define KERNEL(operation, isa) table[#operation].push_back(#isa);
#include "../kernels.def"
#undef KERNEL
  return table;
}

}  // namespace
}  // namespace pycompress

PYBIND11_MODULE(_native, m) {
  using namespace pycompress;
  m.doc() = "The C++ kernels of pycompress; called by pycompress.kernels, which checks the arguments.";
  m.def("levels", &levels, "Instruction set levels that have kernels and that this CPU runs, lowest first.");
  m.def("kernels", &kernels, "The levels that each operation exists for.");
  bind_bf16(m);
  bind_binary(m);
  bind_channels_last(m);
  bind_codebook(m);
  bind_convolution(m);
  bind_int4(m);
  bind_matmul(m);
  bind_limits(m);
  bind_recurrent(m);
  bind_selection(m);
  bind_spmm(m);
  bind_vectors(m);
}
