#include "buffer.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define PYCOMPRESS_REGIONS 1
#include <sys/mman.h>
#else
#define PYCOMPRESS_REGIONS 0  // one allocation for each buffer, as the sanitizers need it
#endif

namespace pycompress {
namespace {

constexpr std::size_t slack = 64;

std::shared_ptr<void> allocate_alone(std::size_t bytes) {
  bytes = (bytes + slack + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes);
  if (!memory) throw std::bad_alloc();
  std::memset(memory, 0, bytes);
  return std::shared_ptr<void>(memory, std::free);
}

#if PYCOMPRESS_REGIONS

constexpr std::size_t page = std::size_t{2} << 20;  // a large page
constexpr std::size_t shared_bytes = 4 * page;      // of a region for several buffers
constexpr std::size_t small = 32 * 1024;            // a few pages of 4 KiB: not worth a place in a region

// Zeroed memory that begins on a large page; given back with its last buffer.
class Region {
 public:
  explicit Region(std::size_t bytes) : bytes_((bytes + page - 1) / page * page) {
    // One page more than needed holds an aligned part; what is left on both sides is given back.
    void* mapped = mmap(nullptr, bytes_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    const std::size_t before = (page - reinterpret_cast<std::uintptr_t>(mapped) % page) % page;
    begin_ = static_cast<char*>(mapped) + before;
    if (before > 0) munmap(mapped, before);
    if (before < page) munmap(begin_ + bytes_, page - before);
    madvise(begin_, bytes_, MADV_HUGEPAGE);  // where the system refuses, pages are small
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region() { munmap(begin_, bytes_); }

  // The next `bytes` of the region, or null when they are not left.
  void* take(std::size_t bytes) {
    if (used_ + bytes > bytes_) return nullptr;
    used_ += bytes;
    return begin_ + used_ - bytes;
  }

 private:
  std::size_t bytes_, used_ = 0;
  char* begin_;
};

#endif

}  // namespace

std::shared_ptr<void> allocate(std::size_t bytes) {
#if PYCOMPRESS_REGIONS
  if (bytes >= small) {
    bytes = (bytes + slack + 63) / 64 * 64;
    if (bytes > shared_bytes / 2) {
      auto region = std::make_shared<Region>(bytes);
      void* memory = region->take(bytes);
      return std::shared_ptr<void>(std::move(region), memory);
    }
    static std::mutex mutex;
    static std::weak_ptr<Region> current;
    const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
    if (!lock) return allocate_alone(bytes);  // in use; or it was, in the parent, when this process was forked
    std::shared_ptr<Region> region = current.lock();
    void* memory = region ? region->take(bytes) : nullptr;
    if (!memory) {
      region = std::make_shared<Region>(shared_bytes);
      current = region;
      memory = region->take(bytes);
    }
    return std::shared_ptr<void>(std::move(region), memory);
  }
#endif
  return allocate_alone(bytes);
}

}  // namespace pycompress
