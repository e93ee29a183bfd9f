// All threading of the extension: one small pool for the process, no OpenMP.
//
// parallel_for(count, threads, body) calls body(i) once for each i in [0, count). Indices are claimed dynamically; the
// calling thread works too, and it never waits for a worker that has not claimed an index, so a worker that the kernel
// has descheduled costs nothing. Several threads may call at once. Workers look for more work for a few microseconds
// and then sleep. After fork the child starts with an empty pool of its own.
//
// Results must not depend on which thread runs an index: bodies write to disjoint outputs.
#pragma once

#include <cstddef>
#include <type_traits>

namespace pycompress {

namespace detail {
void parallel_for(std::size_t count, int threads, void (*body)(void*, std::size_t), void* context);
}

template <class Body>
void parallel_for(std::size_t count, int threads, Body&& body) {
  if (threads <= 1 || count <= 1) {
    for (std::size_t i = 0; i < count; ++i) body(i);
    return;
  }
  using Plain = std::remove_reference_t<Body>;
  detail::parallel_for(
      count, threads, [](void* context, std::size_t i) { (*static_cast<Plain*>(context))(i); }, &body);
}

// Number of chunks to cut `units` equal pieces of work of `total_us` estimated microseconds into: 1 below the time that
// waking a worker is worth, else a few for each thread.
std::size_t chunk_count(std::size_t units, double total_us, int threads);

// Scratch memory of the calling thread, 64-byte aligned, valid until its next call with the same slot; for use by code
// that runs outside bodies. Slots are 0..3, 4 for what lies between two kernels, and 5 for columns of activations.
void* scratch(int slot, std::size_t bytes);

}  // namespace pycompress
