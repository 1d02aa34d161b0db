// Threads: a guard for tasks that run on other people's, and a few of our own for callers without any.
#pragma once

#include <atomic>
#include <cstddef>

#include "linear.h"

namespace sparsify {

// Runs a task so that no exception leaves it: the threads of a runtime do not expect one. Give a runtime
// `Guard::run` and the guard; `finish` then throws std::bad_alloc in the thread that waited.
class Guard {
 public:
  Guard(void (*task)(void*, std::size_t), void* data) : task_(task), data_(data) {}
  static void run(void* guard, std::size_t index) noexcept;
  void finish() const;

 private:
  void (*task_)(void*, std::size_t);
  void* data_;
  std::atomic<bool> failed_{false};
};

// A pool of up to `threads` threads, the caller being one of them. The others are started when they are first
// needed and sleep between calls. A second caller at the same time, and a machine that gives no threads, do
// with the caller alone.
Pool own_pool(std::size_t threads);

}  // namespace sparsify
