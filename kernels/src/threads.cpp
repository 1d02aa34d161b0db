#include "threads.h"

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace sparsify {
namespace {

// A thread that has just worked looks this often for the next job before it sleeps: the steps of one product
// follow each other at once, and waking a thread takes longer than a step.
constexpr int kLooks = 2000;

void pause() {
#if defined(SPARSIFY_X86)
  __builtin_ia32_pause();
#elif defined(SPARSIFY_ARM64)
  asm volatile("yield");
#endif
}

class Team {
 public:
  void run(std::size_t threads, void (*task)(void*, std::size_t), void* data, std::size_t count) {
    const std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    const std::size_t helpers = turn.owns_lock() ? hire(std::min(threads, count) - 1) : 0;
    if (helpers == 0) {
      for (std::size_t i = 0; i < count; ++i) task(data, i);
      return;
    }
    open(helpers, task, data, count);
    work();
    close();
  }

 private:
  // Starts threads until there are `wanted`; returns how many may help.
  std::size_t hire(std::size_t wanted) {
    try {
      for (; hired_ < wanted; ++hired_) std::thread(&Team::serve, this).detach();
    } catch (const std::system_error&) {
      // As many as the machine gives.
    }
    return std::min(hired_, wanted);
  }

  void open(std::size_t helpers, void (*task)(void*, std::size_t), void* data, std::size_t count) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      task_ = task;
      data_ = data;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      seats_ = helpers;
      job_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  void work() {
    for (;;) {
      const std::size_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= count_) return;
      task_(data_, index);
    }
  }

  // Nobody may begin any more; waits for those who have.
  void close() {
    std::unique_lock<std::mutex> lock(mutex_);
    seats_ = 0;
    done_.wait(lock, [this] { return working_ == 0; });
  }

  void serve() {
    std::uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kLooks && job_.load(std::memory_order_acquire) == seen; ++i) pause();
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return job_.load(std::memory_order_relaxed) != seen; });
      seen = job_.load(std::memory_order_relaxed);
      if (seats_ == 0) continue;
      --seats_;
      ++working_;
      lock.unlock();
      work();
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_;  // held by the caller whose job this is
  std::size_t hired_ = 0;

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<std::uint64_t> job_{0};
  std::size_t seats_ = 0, working_ = 0;

  void (*task_)(void*, std::size_t) = nullptr;
  void* data_ = nullptr;
  std::size_t count_ = 0;
  std::atomic<std::size_t> next_{0};
};

// The team of this process. It is never taken down: its threads may be asleep in it when the process ends.
// A forked child has the memory of the team but not its threads, so it gets a team of its own.
Team& team() {
  static std::mutex mutex;
  static Team* current = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
#if !defined(_WIN32)
  static pid_t owner = 0;
  if (owner != getpid()) current = nullptr;
  owner = getpid();
#endif
  if (current == nullptr) current = new Team;
  return *current;
}

void run_on_team(void* handle, void (*task)(void*, std::size_t), void* data, std::size_t count) {
  if (count == 0) return;
  Guard guard(task, data);
  team().run(reinterpret_cast<std::size_t>(handle), Guard::run, &guard, count);
  guard.finish();
}

void run_inline(void*, void (*task)(void*, std::size_t), void* data, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) task(data, i);
}

}  // namespace

void Guard::run(void* guard, std::size_t index) noexcept {
  auto* self = static_cast<Guard*>(guard);
  try {
    self->task_(self->data_, index);
  } catch (...) {  // a task can only run out of memory
    self->failed_.store(true, std::memory_order_relaxed);
  }
}

void Guard::finish() const {
  if (failed_.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

Pool own_pool(std::size_t threads) {
  if (threads <= 1) return Pool{nullptr, run_inline};
  return Pool{reinterpret_cast<void*>(threads), run_on_team};
}

}  // namespace sparsify
