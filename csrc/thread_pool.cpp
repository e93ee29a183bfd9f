#include "thread_pool.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace pycompress {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  asm volatile("yield");
#endif
}

struct Job {
  Job(std::size_t n, int helpers, void (*b)(void*, std::size_t), void* c)
      : count(n), body(b), context(c), seats(helpers) {}
  const std::size_t count;
  void (*const body)(void*, std::size_t);
  void* const context;  // lives on the caller's stack: read only after an index was claimed
  int seats;            // workers that may still join; guarded by the pool's mutex
  std::atomic<std::size_t> next{0};
  std::atomic<std::size_t> done{0};

  void work() {
    for (;;) {
      const std::size_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      body(context, i);
      done.fetch_add(1, std::memory_order_release);
    }
  }
};

constexpr int max_workers = 256;
constexpr int spins = 200;  // pauses before a worker sleeps: a few microseconds

class Pool {
 public:
  void run(std::size_t count, int threads, void (*body)(void*, std::size_t), void* context) {
    const int helpers = static_cast<int>(std::min<std::size_t>(std::min(threads - 1, max_workers), count - 1));
    auto job = std::make_shared<Job>(count, helpers, body, context);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(helpers);
      jobs_.push_back(job);
      pending_.store(static_cast<int>(jobs_.size()), std::memory_order_release);
      if (sleeping_ > 0 || jobs_.size() == 1) keep_workers_off_this_cpu();
      for (int i = 0; i < std::min(helpers, sleeping_); ++i) wake_.notify_one();
    }
    job->work();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      remove(job);
    }
    for (int i = 0; job->done.load(std::memory_order_acquire) != count; ++i) {
      if (i < 2000) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  // Called with the mutex held. Without a thread to be had, the caller does the work alone.
  void grow(int helpers) {
    while (workers_ < helpers) {
      pthread_attr_t attributes;
      pthread_attr_init(&attributes);
      pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
      pthread_t thread;
      const int failed = pthread_create(
          &thread, &attributes,
          [](void* self) -> void* {
            static_cast<Pool*>(self)->serve();
            return nullptr;
          },
          this);
      pthread_attr_destroy(&attributes);
      if (failed) return;
      threads_[workers_++] = thread;
    }
  }

  // With few CPUs the kernel often wakes a worker on the CPU of the caller, which is about to be busy: after 10 ms of
  // rest in half of the calls on 2 CPUs, and the worker then did not run at all. A caller that was moved to the CPU of
  // the workers would starve them in the same way, asleep or not. Called with the mutex held.
  void keep_workers_off_this_cpu() {
#if defined(__linux__)
    cpu_set_t allowed;
    const int cpu = sched_getcpu();
    if (cpu < 0 || cpu >= CPU_SETSIZE || (masked_ == workers_ && cpu == masked_cpu_)) return;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    if (CPU_COUNT(&allowed) < 2 || CPU_COUNT(&allowed) > 4) return;
    CPU_CLR(cpu, &allowed);
    for (int i = 0; i < workers_; ++i) pthread_setaffinity_np(threads_[i], sizeof allowed, &allowed);
    masked_cpu_ = cpu;
    masked_ = workers_;
#endif
  }

  void remove(const std::shared_ptr<Job>& job) {
    auto it = std::find(jobs_.begin(), jobs_.end(), job);
    if (it != jobs_.end()) jobs_.erase(it);
    pending_.store(static_cast<int>(jobs_.size()), std::memory_order_release);
  }

  std::shared_ptr<Job> take() {  // with the mutex held
    for (auto& job : jobs_) {
      if (job->seats > 0 && job->next.load(std::memory_order_relaxed) < job->count) {
        --job->seats;
        return job;
      }
    }
    return nullptr;
  }

  // Asks for short turns. A worker that wakes beside another library's spinning one (OpenMP's spin for 10 ms and more
  // after their work is done) would wait for the end of its turn, 3 ms; Linux lets the shorter turn go first (from 6.12
  // on; older ones take no notice).
  static void ask_for_short_turns() {
#if defined(__linux__) && defined(SYS_sched_setattr)
    if (sched_getscheduler(0) != SCHED_OTHER) return;  // somebody has chosen another way for this process
    struct {
      std::uint32_t size = 48, policy = 0;
      std::uint64_t flags = 0;
      std::int32_t nice = 0;
      std::uint32_t priority = 0;
      std::uint64_t runtime = 100000, deadline = 0, period = 0;  // nanoseconds
    } turn;
    errno = 0;
    turn.nice = getpriority(PRIO_PROCESS, 0);
    if (errno == 0) syscall(SYS_sched_setattr, 0, &turn, 0);
#endif
  }

  void serve() {
    ask_for_short_turns();
    for (;;) {
      for (int i = 0; i < spins && pending_.load(std::memory_order_acquire) == 0; ++i) pause();
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        job = take();
        while (!job) {
          ++sleeping_;
          wake_.wait(lock);
          --sleeping_;
          job = take();
        }
      }
      job->work();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<Job>> jobs_;
  std::atomic<int> pending_{0};
  pthread_t threads_[max_workers];
  int workers_ = 0;
  int sleeping_ = 0;
#if defined(__linux__)
  int masked_cpu_ = -1;  // where the first `masked_` workers do not run
  int masked_ = 0;
#endif
};

// The pool is never destroyed (its workers are detached), and a forked child leaks its parent's, whose locks and threads
// it can't use.
std::atomic<Pool*> pool{nullptr};

Pool& get_pool() {
  static const bool registered = [] {
    pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
    return true;
  }();
  (void)registered;
  Pool* p = pool.load(std::memory_order_acquire);
  if (!p) {
    auto* made = new Pool;
    if (pool.compare_exchange_strong(p, made)) return *made;
    delete made;  // another thread was first; this one has no workers yet
  }
  return *p;
}

struct Scratch {
  void* data[6] = {};
  std::size_t bytes[6] = {};
  ~Scratch() {
    for (void* p : data) std::free(p);
  }
};

thread_local Scratch thread_scratch;

}  // namespace

void detail::parallel_for(std::size_t count, int threads, void (*body)(void*, std::size_t), void* context) {
  get_pool().run(count, threads, body, context);
}

std::size_t chunk_count(std::size_t units, double total_us, int threads) {
  constexpr double worth_us = 60;  // beside another library's spinning worker a second thread gains nothing below
  constexpr double chunk_us = 15;  // small chunks: a worker that is descheduled inside one is waited for
  if (threads <= 1 || units <= 1 || total_us < worth_us) return 1;
  const auto by_time = static_cast<std::size_t>(total_us / chunk_us);
  return std::min(units, std::clamp<std::size_t>(by_time, threads, 16 * static_cast<std::size_t>(threads)));
}

void* scratch(int slot, std::size_t bytes) {
  Scratch& s = thread_scratch;
  if (s.bytes[slot] < bytes) {
    std::free(s.data[slot]);
    s.bytes[slot] = 0;
    const std::size_t size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    s.data[slot] = std::aligned_alloc(4096, size);
    if (!s.data[slot]) throw std::bad_alloc();
    s.bytes[slot] = size;
  }
  return s.data[slot];
}

}  // namespace pycompress
