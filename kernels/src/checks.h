// Numbers and bytes that come from a file or a caller, believed only after these checks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace sparsify {

#if defined(__GNUC__)
#define SPARSIFY_PRINTF(text, values) __attribute__((format(printf, text, values)))
#else
#define SPARSIFY_PRINTF(text, values)
#endif

// A sentence for the user, thrown. It holds its own room: refusing a file must not fail for lack of memory.
class Refusal {
 public:
  explicit Refusal(const char* format, ...) SPARSIFY_PRINTF(2, 3);
  const char* text() const { return text_; }

 private:
  char text_[400];
};

// A weight as it is described to us.
struct Stated {
  std::int64_t n, m, in, out, group;
  std::int64_t values;  // a number of `Values`
};

// "float32", "int8", "int4", or "?".
const char* values_name(std::int64_t values);
// The number of a name, or -1.
std::int64_t values_number(const char* name);
// Writes "2:4, 768 -> 3072, int4, group 64".
void describe(const Stated& stated, char* text, std::size_t room);

// Throws Refusal.
Layout checked_layout(const Stated& stated);
void check_bytes(const Layout& layout, std::size_t bytes);
void check_content(const Layout& layout, const std::uint8_t* packed);

}  // namespace sparsify
