// The types of weights that kernels read as they lie; 16-bit ones are widened in registers, exactly.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycompress {

enum class Element : int { f32, f16, bf16 };

constexpr std::size_t element_bytes(Element type) { return type == Element::f32 ? 4 : 2; }

}  // namespace pycompress
