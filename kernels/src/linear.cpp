#include "linear.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

namespace sparsify {
namespace {

// Few tokens: so many tasks that a slow thread can be helped out, so few that handing them out costs little.
constexpr std::size_t kTasks = 8;
constexpr std::size_t kAlignment = 64;
// Row blocks of one tile task: enough to use a transposed tile well, with sums that stay in the first cache.
constexpr std::size_t kTileBlocks = 32;

// Uninitialised memory on a cache line, kept for the next call of this thread: a layer would otherwise fault
// in fresh pages at every call.
class Scratch {
 public:
  template <typename T>
  T* get(std::size_t count) {
    const std::size_t bytes = count * sizeof(T) + kAlignment;
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(new std::uint8_t[bytes]);
      size_ = bytes;
    }
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    return reinterpret_cast<T*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  std::unique_ptr<std::uint8_t[]> memory_;
  std::size_t size_ = 0;
};

struct Job {
  const Isa& isa;
  const Layout& layout;
  const std::uint8_t* packed;
  const float* bias;
  const float* x;
  std::size_t tokens;
  float* y;
  std::size_t tasks;        // of the current step
  std::size_t task_blocks;  // tiles: row blocks of one task
  std::size_t width;        // tiles: tokens of all but the last
  const float* padded_x;
  float* tiles;
  std::uint8_t* codes;
  float* scales;

  std::size_t part(std::size_t total, std::size_t index) const { return total * index / tasks; }
  std::size_t tile_start(std::size_t tile) const { return tile * width; }
  std::size_t tile_size(std::size_t tile) const { return std::min(width, tokens - tile_start(tile)); }
  std::size_t tile_count() const { return (tokens + width - 1) / width; }
  std::size_t tile_width(std::size_t tile) const {
    return tile_size(tile) == width ? width : isa.floats.tile_width(tile_size(tile));
  }
  float* tile_at(std::size_t tile) const { return tiles + tile_start(tile) * layout.padded; }
};

void few_task(void* data, std::size_t index) {
  const Job& job = *static_cast<const Job*>(data);
  job.isa.floats.few(job.layout, job.packed, job.padded_x, job.tokens, job.bias, job.y,
              job.part(job.layout.blocks, index), job.part(job.layout.blocks, index + 1));
}

void run(Job& job, const Pool& pool, std::size_t tasks, void (*task)(void*, std::size_t)) {
  job.tasks = tasks;
  if (tasks == 1) {
    task(&job, 0);
  } else {
    pool.run(pool.handle, task, &job, tasks);
  }
}

void float_few(Job& job, const Pool& pool) {
  static thread_local Scratch scratch;
  const Layout& layout = job.layout;
  job.padded_x = job.x;
  if (layout.padded != layout.in) {
    float* copy = scratch.get<float>(layout.padded * job.tokens);
    for (std::size_t t = 0; t < job.tokens; ++t) {
      std::copy_n(job.x + t * layout.in, layout.in, copy + t * layout.padded);
      std::fill_n(copy + t * layout.padded + layout.in, layout.padded - layout.in, 0.0f);
    }
    job.padded_x = copy;
  }
  run(job, pool, std::min(layout.blocks, kTasks), few_task);
}

void transpose_task(void* data, std::size_t index) {
  const Job& job = *static_cast<const Job*>(data);
  const std::size_t eighths = (job.layout.padded + 7) / 8;
  const std::size_t first = job.part(eighths, index) * 8, last = job.part(eighths, index + 1) * 8;
  for (std::size_t tile = 0; tile < job.tile_count(); ++tile) {
    job.isa.floats.transpose(job.x + job.tile_start(tile) * job.layout.in, job.layout.in, job.tile_size(tile),
                             job.tile_at(tile), job.tile_width(tile), first, last);
  }
}

void tile_task(void* data, std::size_t index) {
  static thread_local Scratch scratch;
  const Job& job = *static_cast<const Job*>(data);
  const std::size_t tile = index % job.tile_count(), run = index / job.tile_count();
  const std::size_t first = run * job.task_blocks;
  const std::size_t last = std::min(job.layout.blocks, first + job.task_blocks);
  const std::size_t width = job.tile_width(tile);
  float* sums = scratch.get<float>(kRows * (last - first) * width);
  job.isa.floats.tile(job.layout, job.packed, job.tile_at(tile), width, job.tile_size(tile), job.bias,
                      job.y + job.tile_start(tile) * job.layout.out, first, last, sums);
}

void float_tiles(Job& job, const Pool& pool) {
  static thread_local Scratch scratch;
  job.width = job.isa.floats.tile_width(job.tokens);
  const std::size_t tiles = job.tile_count();
  job.tiles = scratch.get<float>(job.layout.padded * (job.tile_start(tiles - 1) + job.tile_width(tiles - 1)));
  run(job, pool, std::min(kTasks, (job.layout.padded + 7) / 8), transpose_task);
  const std::size_t wanted = std::max<std::size_t>(2, job.layout.blocks * tiles / kTasks);
  job.task_blocks = std::min(kTileBlocks, wanted);
  const std::size_t runs = (job.layout.blocks + job.task_blocks - 1) / job.task_blocks;
  run(job, pool, runs * tiles, tile_task);
}

void quantize_task(void* data, std::size_t index) {
  const Job& job = *static_cast<const Job*>(data);
  job.isa.rounded.quantize(job.layout, job.x, job.tokens, job.part(job.tokens, index),
                           job.part(job.tokens, index + 1), job.codes, job.scales);
}

void rounded_task(void* data, std::size_t index) {
  static thread_local Scratch scratch;
  const Job& job = *static_cast<const Job*>(data);
  std::uint8_t* work = scratch.get<std::uint8_t>(job.isa.rounded.work_bytes(job.layout));
  job.isa.rounded.rounded(job.layout, job.packed, job.codes, job.scales, job.tokens, job.bias, job.y,
                  job.part(job.layout.blocks, index), job.part(job.layout.blocks, index + 1), work);
}

void rounded(Job& job, const Pool& pool) {
  static thread_local Scratch codes, scales;
  job.codes = codes.get<std::uint8_t>(job.isa.rounded.code_bytes(job.layout, job.tokens));
  job.scales = scales.get<float>(job.layout.groups() * job.tokens);
  run(job, pool, std::min(kTasks, job.tokens), quantize_task);
  run(job, pool, std::min(kTasks, job.layout.blocks), rounded_task);
}

}  // namespace

void linear(const Isa& isa, const Layout& layout, const std::uint8_t* packed, const float* bias,
            const float* x, std::size_t tokens, float* y, const Pool& pool) {
  if (tokens == 0) return;
  Job job{isa, layout, packed, bias, x, tokens, y, 0, 0, 0, nullptr, nullptr, nullptr, nullptr};
  if (layout.values != Values::float32) {
    rounded(job, pool);
  } else if (tokens < isa.floats.few_limit) {
    float_few(job, pool);
  } else {
    float_tiles(job, pool);
  }
}

}  // namespace sparsify
