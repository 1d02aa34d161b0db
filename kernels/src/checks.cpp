#include "checks.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace sparsify {
namespace {

constexpr const char* kValues[] = {"float32", "int8", "int4"};
constexpr std::int64_t kMost = std::int64_t{1} << 31;  // `derive` has the real limits; this makes casts safe

std::size_t size_from(std::int64_t number, const char* name) {
  if (number < 0 || number >= kMost) throw Refusal("%s cannot be %lld", name, static_cast<long long>(number));
  return static_cast<std::size_t>(number);
}

}  // namespace

Refusal::Refusal(const char* format, ...) {
  std::va_list values;
  va_start(values, format);
  std::vsnprintf(text_, sizeof text_, format, values);
  va_end(values);
}

const char* values_name(std::int64_t values) { return values >= 0 && values < 3 ? kValues[values] : "?"; }

std::int64_t values_number(const char* name) {
  for (std::int64_t i = 0; i < 3; ++i) {
    if (std::strcmp(name, kValues[i]) == 0) return i;
  }
  return -1;
}

void describe(const Stated& stated, char* text, std::size_t room) {
  const auto number = [](std::int64_t value) { return static_cast<long long>(value); };
  std::snprintf(text, room, "%lld:%lld, %lld -> %lld, %s, group %lld", number(stated.n), number(stated.m),
                number(stated.in), number(stated.out), values_name(stated.values), number(stated.group));
}

Layout checked_layout(const Stated& stated) {
  Layout layout{};
  layout.n = size_from(stated.n, "n");
  layout.m = size_from(stated.m, "m");
  layout.in = size_from(stated.in, "in_features");
  layout.out = size_from(stated.out, "out_features");
  layout.group = size_from(stated.group, "group");
  if (stated.values < 0 || stated.values > 2) throw Refusal("values must be float32, int8 or int4");
  layout.values = static_cast<Values>(stated.values);
  if (const char* wrong = derive(layout)) throw Refusal("%s", wrong);
  return layout;
}

void check_bytes(const Layout& layout, std::size_t bytes) {
  if (bytes != layout.bytes()) {
    throw Refusal("the packed weight has %zu bytes, these sizes need %zu", bytes, layout.bytes());
  }
}

void check_content(const Layout& layout, const std::uint8_t* packed) {
  if (const char* wrong = inspect(layout, packed)) throw Refusal("%s", wrong);
}

}  // namespace sparsify
