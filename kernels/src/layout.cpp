#include "layout.h"

#include <cstring>

namespace sparsify {
namespace {

// Far above any real layer, and low enough that no product of sizes below overflows 64 bits.
constexpr std::size_t kMostFeatures = std::size_t{1} << 24;

std::size_t round_up(std::size_t value, std::size_t step) { return (value + step - 1) / step * step; }

const char* check(const Layout& layout) {
  const bool four = layout.m == 4 && (layout.n == 1 || layout.n == 2);
  const bool eight = layout.m == 8 && layout.n >= 1 && layout.n <= 7;
  if (!four && !eight) return "the pattern must be 1:4, 2:4 or N:8 with N from 1 to 7";
  if (layout.in < 1 || layout.out < 1) return "a weight needs at least one row and one column";
  if (layout.in > kMostFeatures || layout.out > kMostFeatures) return "a weight has at most 16777216 rows and columns";
  switch (layout.values) {
    case Values::float32:
      return layout.group == 0 ? nullptr : "float32 values have no scale groups: group must be 0";
    case Values::int8:
    case Values::int4:
      break;
    default:
      return "values must be float32, int8 or int4";
  }
  const bool sized = layout.group >= 32 && layout.group <= 128 && layout.group % 32 == 0;
  return sized ? nullptr : "group must be 32, 64, 96 or 128 columns";
}

const char* inspect_floats(const Layout& layout, const std::uint8_t* packed) {
  if (layout.m == 4) return nullptr;  // two bits cannot leave a group of four
  const std::size_t chunk = float_chunk_bytes(layout.m);
  for (std::size_t at = 0; at < layout.bytes(); at += chunk) {
    std::uint32_t words[kRows];
    std::memcpy(words, packed + at, sizeof words);
    std::uint32_t any = 0;
    for (std::uint32_t word : words) any |= word;
    if (any & 0x88888888u) return "the packed weight is damaged: an index is beyond its group of 8 columns";
  }
  return nullptr;
}

// The bits of the last index vectors of a plane that belong to no slot; `per` slots share a vector.
std::uint8_t spare_bits(std::size_t slots, std::size_t per) {
  const std::size_t used = slots % per * (8 / per);
  return used == 0 ? 0 : static_cast<std::uint8_t>(0xff << used);
}

bool any_bit(const std::uint8_t* vector, std::uint8_t mask) {
  std::uint8_t any = 0;
  for (std::size_t i = 0; i < 32; ++i) any |= vector[i];
  return (any & mask) != 0;
}

bool finite_scales(const std::uint8_t* scales) {
  for (std::size_t row = 0; row < kRows; ++row) {
    if ((scales[2 * row + 1] & 0x7c) == 0x7c) return false;  // all exponent bits of a float16
  }
  return true;
}

const char* inspect_rounded(const Layout& layout, const std::uint8_t* packed) {
  const std::size_t size = group_bytes(layout.m, layout.slots, layout.values == Values::int4);
  const std::size_t low = (layout.slots + 3) / 4;
  const std::size_t high = layout.m == 8 ? (layout.slots + 7) / 8 : 0;
  const std::uint8_t low_spare = spare_bits(layout.slots, 4);
  const std::uint8_t high_spare = spare_bits(layout.slots, 8);
  for (std::size_t at = 0; at < layout.bytes(); at += size) {
    const std::uint8_t* planes = packed + at + 16;
    if (!finite_scales(packed + at)) return "the packed weight is damaged: a scale is not a finite number";
    if (low_spare && any_bit(planes + 32 * (low - 1), low_spare))
      return "the packed weight is damaged: an index bit of no slot is set";
    if (high && high_spare && any_bit(planes + 32 * (low + high - 1), high_spare))
      return "the packed weight is damaged: an index bit of no slot is set";
  }
  return nullptr;
}

}  // namespace

const char* derive(Layout& layout) {
  if (const char* wrong = check(layout)) return wrong;
  layout.blocks = (layout.out + kRows - 1) / kRows;
  if (layout.values == Values::float32) {
    const std::size_t fields = float_fields(layout.m);
    layout.span = layout.m * fields / gcd(layout.n, fields);
    layout.padded = round_up(layout.in, layout.span);
    layout.slots = 0;
    layout.block_bytes = layout.padded / layout.m * layout.n / fields * float_chunk_bytes(layout.m);
  } else {
    layout.span = layout.group;
    layout.padded = round_up(layout.in, layout.span);
    layout.slots = layout.group * layout.n / (4 * layout.m);
    layout.block_bytes =
        layout.padded / layout.group * group_bytes(layout.m, layout.slots, layout.values == Values::int4);
  }
  return nullptr;
}

const char* inspect(const Layout& layout, const std::uint8_t* packed) {
  return layout.values == Values::float32 ? inspect_floats(layout, packed) : inspect_rounded(layout, packed);
}

}  // namespace sparsify
