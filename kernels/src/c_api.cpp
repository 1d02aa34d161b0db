#include <algorithm>
#include <cstdio>
#include <new>
#include <string>
#include <thread>

#include "checks.h"
#include "isa.h"
#include "linear.h"
#include "sparsify_kernels.h"
#include "threads.h"

namespace sparsify {
namespace {

constexpr unsigned kMostThreads = 256;

Stated stated_from(const sparsify_nm* sizes) {
  if (sizes == nullptr) throw Refusal("no sizes were given");
  return {sizes->n, sizes->m, sizes->in_features, sizes->out_features, sizes->group, sizes->values};
}

Layout layout_of(const sparsify_nm* sizes, const std::uint8_t* packed, std::size_t bytes) {
  const Layout layout = checked_layout(stated_from(sizes));
  check_bytes(layout, bytes);
  if (packed == nullptr) throw Refusal("no packed weight was given");
  return layout;
}

std::size_t thread_count(std::int32_t threads) {
  if (threads < 0) throw Refusal("the number of threads is %d", static_cast<int>(threads));
  const unsigned wanted = threads == 0 ? std::thread::hardware_concurrency() : static_cast<unsigned>(threads);
  return std::clamp(wanted, 1u, kMostThreads);
}

// Runs `body`; no exception leaves. Sentences begin with the sizes they are about.
template <typename Body>
std::int32_t guarded(const sparsify_nm* sizes, char* message, std::size_t room, Body body) noexcept {
  const auto say = [&](std::int32_t code, const char* text) {
    char about[128] = "";
    if (sizes != nullptr) describe(stated_from(sizes), about, sizeof about);
    if (message != nullptr && room != 0) std::snprintf(message, room, "N:M weight (%s): %s", about, text);
    return code;
  };
  try {
    if (message != nullptr && room != 0) message[0] = 0;
    body();
    return SPARSIFY_OK;
  } catch (const Refusal& refusal) {
    return say(SPARSIFY_REFUSED, refusal.text());
  } catch (...) {
    return say(SPARSIFY_NO_MEMORY, "out of memory");
  }
}

}  // namespace
}  // namespace sparsify

using namespace sparsify;

std::int32_t sparsify_abi(void) { return SPARSIFY_ABI; }

const char* sparsify_version(void) { return SPARSIFY_VERSION; }

const char* sparsify_isa(void) { return best_isa().name; }

const char* sparsify_isas(void) {
  struct Names {
    char text[64] = "";
    Names() {
      const Isa* tables[kMostIsas];
      const std::size_t count = available_isas(tables);
      std::size_t used = 0;
      for (std::size_t i = 0; i < count && used < sizeof text; ++i) {
        used += static_cast<std::size_t>(
            std::snprintf(text + used, sizeof text - used, i ? " %s" : "%s", tables[i]->name));
      }
    }
  };
  static const Names names;
  return names.text;
}

std::int64_t sparsify_nm_bytes(const sparsify_nm* sizes, char* message, std::size_t message_bytes) {
  std::int64_t bytes = -1;
  guarded(sizes, message, message_bytes, [&] {
    bytes = static_cast<std::int64_t>(checked_layout(stated_from(sizes)).bytes());
  });
  return bytes;
}

std::int32_t sparsify_nm_check(const sparsify_nm* sizes, const std::uint8_t* packed, std::size_t packed_bytes,
                               char* message, std::size_t message_bytes) {
  return guarded(sizes, message, message_bytes,
                 [&] { check_content(layout_of(sizes, packed, packed_bytes), packed); });
}

std::int32_t sparsify_nm_linear(const sparsify_nm* sizes, const std::uint8_t* packed,
                                std::size_t packed_bytes, const float* bias, const float* x,
                                std::size_t tokens, float* y, std::int32_t threads, char* message,
                                std::size_t message_bytes) {
  return guarded(sizes, message, message_bytes, [&] {
    const Layout layout = layout_of(sizes, packed, packed_bytes);
    const std::size_t count = thread_count(threads);
    if (tokens == 0) return;
    if (x == nullptr || y == nullptr) throw Refusal("x or y was not given");
    linear(best_isa(), layout, packed, bias, x, tokens, y, own_pool(count));
  });
}
