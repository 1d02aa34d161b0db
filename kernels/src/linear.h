// One product y = x W^T + b, cut into tasks for a pool of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "layout.h"

namespace sparsify {

// Runs `task(data, i)` for every i below `count`, on any threads, and returns when all have ended.
struct Pool {
  void* handle;
  void (*run)(void* handle, void (*task)(void* data, std::size_t index), void* data, std::size_t count);
};

// x [tokens, in], bias [out] or null, y [tokens, out]. Throws std::bad_alloc when scratch memory is short.
void linear(const Isa& isa, const Layout& layout, const std::uint8_t* packed, const float* bias,
            const float* x, std::size_t tokens, float* y, const Pool& pool);

}  // namespace sparsify
