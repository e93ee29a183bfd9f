// Memory of packed weights.
//
// Weights that together fill L3 are read at 53 to 70 GB/s from pages of 4 KiB and at 75 from pages of 2 MiB (Zen 4, one
// row of 768 x 768 to 4096 x 4096): the time goes into translating addresses. Many systems give large pages only where
// they are asked for, and only for whole ones, so that small weights share a region of several large pages.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

namespace pycompress {

// Zeroed memory on a cache line, with 64 bytes of slack at the end. Throws std::bad_alloc.
std::shared_ptr<void> allocate(std::size_t bytes);

template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t size = 0) : size_(size), data_(allocate(size * sizeof(T))) {}
  explicit Buffer(const std::vector<T>& from) : Buffer(from.size()) { std::copy(from.begin(), from.end(), data()); }
  T* data() { return static_cast<T*>(data_.get()); }
  std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  std::size_t size_;
  std::shared_ptr<void> data_;
};

}  // namespace pycompress
