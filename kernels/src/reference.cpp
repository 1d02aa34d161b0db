// The product straight from docs/packed.md, one entry at a time: right on every processor, slow on all.
#include <cmath>
#include <cstring>
#include <limits>

#include "half.h"
#include "isa.h"

namespace sparsify {
namespace {

constexpr std::size_t kNever = std::numeric_limits<std::size_t>::max();

float float_at(const std::uint8_t* bytes) {
  float value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// sum_k W[row, k] x[k] of one row of a block.
float float_row(const Layout& layout, const std::uint8_t* block, std::size_t row, const float* x) {
  const std::size_t fields = float_fields(layout.m), bits = float_bits(layout.m);
  const std::size_t entries = layout.padded / layout.m * layout.n;
  float sum = 0;
  for (std::size_t j = 0; j < entries; ++j) {
    const std::uint8_t* chunk = block + j / fields * float_chunk_bytes(layout.m);
    std::uint32_t word;
    std::memcpy(&word, chunk + 4 * row, sizeof word);
    const std::size_t index = (word >> (bits * (j % fields))) & (layout.m - 1);
    sum += float_at(chunk + 32 + 32 * (j % fields) + 4 * row) * x[j / layout.n * layout.m + index];
  }
  return sum;
}

void few(const Layout& layout, const std::uint8_t* packed, const float* x, std::size_t tokens, const float* bias,
         float* y, std::size_t first, std::size_t last) {
  for (std::size_t o = first * kRows; o < last * kRows && o < layout.out; ++o) {
    const std::uint8_t* block = packed + o / kRows * layout.block_bytes;
    for (std::size_t t = 0; t < tokens; ++t) {
      const float sum = float_row(layout, block, o % kRows, x + t * layout.padded);
      y[t * layout.out + o] = sum + (bias ? bias[o] : 0.0f);
    }
  }
}

std::size_t code_bytes(const Layout& layout, std::size_t tokens) { return tokens * layout.padded; }

// Codes and scale of one group of a token; `count` columns exist.
float quantize_group(const float* x, std::size_t count, std::size_t group, std::int8_t* codes) {
  float most = 0;
  bool finite = true;
  for (std::size_t k = 0; k < count; ++k) {
    most = std::fmax(most, std::fabs(x[k]));
    finite = finite && std::isfinite(x[k]);
  }
  const float quotient = most > 0 ? 127.0f / most : 0.0f;
  const float inverse = finite && std::isfinite(quotient) ? quotient : 0.0f;
  for (std::size_t k = 0; k < group; ++k) {
    codes[k] = k < count && finite ? static_cast<std::int8_t>(std::nearbyint(x[k] * inverse)) : std::int8_t{0};
  }
  return finite ? most / 127.0f : std::numeric_limits<float>::quiet_NaN();
}

void quantize(const Layout& layout, const float* x, std::size_t, std::size_t first, std::size_t last,
              std::uint8_t* codes, float* scales) {
  for (std::size_t t = first; t < last; ++t) {
    for (std::size_t g = 0; g < layout.groups(); ++g) {
      const std::size_t k = g * layout.group, left = layout.in - k;
      auto* to = reinterpret_cast<std::int8_t*>(codes + t * layout.padded + k);
      scales[t * layout.groups() + g] =
          quantize_group(x + t * layout.in + k, left < layout.group ? left : layout.group, layout.group, to);
    }
  }
}

std::size_t work_bytes(const Layout&) { return 0; }

// Where the parts of one scale group begin.
struct Group {
  const std::uint8_t *scales, *low, *high, *values;

  Group(const Layout& layout, const std::uint8_t* at)
      : scales(at), low(at + 16), high(low + 32 * ((layout.slots + 3) / 4)),
        values(high + (layout.m == 8 ? 32 * ((layout.slots + 7) / 8) : 0)) {}

  std::size_t index(const Layout& layout, std::size_t slot, std::size_t byte) const {
    std::size_t index = (low[32 * (slot / 4) + byte] >> (2 * (slot % 4))) & 3;
    if (layout.m == 8) index |= static_cast<std::size_t>((high[32 * (slot / 8) + byte] >> (slot % 8)) & 1) << 2;
    return index;
  }

  int value(const Layout& layout, std::size_t slot, std::size_t byte) const {
    if (layout.values == Values::int8) return static_cast<std::int8_t>(values[32 * slot + byte]);
    return ((values[32 * (slot / 2) + byte] >> (4 * (slot % 2))) & 15) - 8;
  }
};

// sum of value * code over the entries of one row of a scale group; `codes` of its dense columns.
int group_row(const Layout& layout, const Group& group, std::size_t row, const std::int8_t* codes) {
  int sum = 0;
  for (std::size_t j = 0; j < 4 * layout.slots; ++j) {
    const std::size_t slot = j / 4, byte = 4 * row + j % 4;
    const std::size_t column = j / layout.n * layout.m + group.index(layout, slot, byte);
    sum += group.value(layout, slot, byte) * codes[column];
  }
  return sum;
}

void rounded(const Layout& layout, const std::uint8_t* packed, const std::uint8_t* codes, const float* scales,
             std::size_t tokens, const float* bias, float* y, std::size_t first, std::size_t last,
             std::uint8_t*) {
  const std::size_t groups = layout.groups(), bytes = layout.block_bytes / groups;
  for (std::size_t o = first * kRows; o < last * kRows && o < layout.out; ++o) {
    const std::uint8_t* block = packed + o / kRows * layout.block_bytes;
    for (std::size_t t = 0; t < tokens; ++t) {
      const auto* token = reinterpret_cast<const std::int8_t*>(codes + t * layout.padded);
      float sum = 0;
      for (std::size_t g = 0; g < groups; ++g) {
        const Group group(layout, block + g * bytes);
        const int exact = group_row(layout, group, o % kRows, token + g * layout.group);
        const float scale = half_to_float(group.scales + 2 * (o % kRows)) * scales[t * groups + g];
        sum = std::fma(static_cast<float>(exact), scale, sum);
      }
      y[t * layout.out + o] = sum + (bias ? bias[o] : 0.0f);
    }
  }
}

const FloatKernels kFloats = {few, kNever, nullptr, nullptr, nullptr};
const RoundedKernels kRounded = {code_bytes, quantize, work_bytes, rounded};

}  // namespace

const Isa kReference = {"reference", kFloats, kRounded};

}  // namespace sparsify
