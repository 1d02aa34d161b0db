#include "weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace check {
namespace {

using sparsify::Layout;
using sparsify::Values;

// N of the numbers below M, rising.
std::vector<std::size_t> some_of(std::size_t n, std::size_t m, Random& random) {
  std::vector<std::size_t> chosen;
  for (std::size_t i = 0; i < m; ++i) {
    if (random.below(m - i) < n - chosen.size()) chosen.push_back(i);
  }
  return chosen;
}

float draw_value(const Layout& layout, bool whole, Random& random) {
  if (layout.values == Values::int8) return static_cast<float>(random.between(-127, 127));
  if (layout.values == Values::int4) return static_cast<float>(random.between(-7, 7));
  return whole ? static_cast<float>(random.between(-8, 8)) : random.real(2);
}

// Entry `j` of a row of a block: float32 values.
void put_float(const Layout& l, std::uint8_t* block, std::size_t row, std::size_t j, std::size_t index,
               float value) {
  const std::size_t fields = l.m == 4 ? 16 : 8, bits = l.m == 4 ? 2 : 4;
  std::uint8_t* chunk = block + j / fields * (32 + 32 * fields);
  const std::size_t at = bits * (j % fields);
  chunk[4 * row + at / 8] = static_cast<std::uint8_t>(chunk[4 * row + at / 8] | index << (at % 8));
  std::memcpy(chunk + 32 + 32 * (j % fields) + 4 * row, &value, sizeof value);
}

// Entry `j` of a row of a scale group: int8 and int4 values.
void put_code(const Layout& l, std::uint8_t* group, std::size_t row, std::size_t j, std::size_t index,
              int value) {
  const std::size_t slot = j / 4, byte = 4 * row + j % 4;
  const std::size_t slots = l.group * l.n / (4 * l.m);
  std::uint8_t* low = group + 16;
  std::uint8_t* third = low + 32 * ((slots + 3) / 4);
  std::uint8_t* values = third + (l.m == 8 ? 32 * ((slots + 7) / 8) : 0);
  const auto set = [byte](std::uint8_t* vector, std::size_t bits) {
    vector[byte] = static_cast<std::uint8_t>(vector[byte] | bits);
  };
  set(low + 32 * (slot / 4), (index & 3) << (2 * (slot % 4)));
  if (l.m == 8) set(third + 32 * (slot / 8), index >> 2 << (slot % 8));
  if (l.values == Values::int8) {
    values[32 * slot + byte] = static_cast<std::uint8_t>(value);
  } else {
    set(values + 32 * (slot / 2), static_cast<std::size_t>(value + 8) << (4 * (slot % 2)));
  }
  if (l.values == Values::int4 && slot + 1 == slots && slots % 2) set(values + 32 * (slot / 2), 0x80);
}

// A finite float16, from its bits.
double half(std::size_t bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31), fraction = static_cast<int>(bits & 1023);
  const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits >> 15 ? -size : size;
}

// One row; those beyond `out` are packed as zeros.
void draw_row(Weight& weight, std::size_t row, bool whole, Random& random) {
  const Layout& l = weight.layout;
  std::uint8_t* block = weight.packed.data() + row / 8 * l.block_bytes;
  const std::size_t bytes = l.group ? l.block_bytes / l.groups() : 0;
  for (std::size_t g = 0; g < l.groups() && row < l.out; ++g) {
    const std::size_t bits = random.below(0x7c00) | random.below(2) << 15;
    weight.scales[row * l.groups() + g] = half(bits);
    block[g * bytes + 2 * (row % 8)] = static_cast<std::uint8_t>(bits);
    block[g * bytes + 2 * (row % 8) + 1] = static_cast<std::uint8_t>(bits >> 8);
  }
  for (std::size_t j = 0, first = 0; first < l.padded; first += l.m) {
    for (const std::size_t index : some_of(l.n, l.m, random)) {
      const bool real = row < l.out && first + index < l.in;
      const float value = real ? draw_value(l, whole, random) : 0.0f;
      if (real) weight.dense[row * l.in + first + index] = value;
      if (l.values == Values::float32) {
        put_float(l, block, row % 8, j++, index, value);
      } else {
        const std::size_t entries = l.group * l.n / l.m, g = j / entries;
        put_code(l, block + g * bytes, row % 8, j++ % entries, index, static_cast<int>(value));
      }
    }
  }
}

// One scale group of a token: its scale, and its columns rounded.
double round_group(const float* x, std::size_t count, std::vector<double>& codes) {
  float most = 0;
  bool finite = true;
  for (std::size_t k = 0; k < count; ++k) {
    finite = finite && std::isfinite(x[k]);
    most = std::max(most, std::fabs(x[k]));
  }
  if (!finite) return std::numeric_limits<double>::quiet_NaN();
  const float factor = 127.0f / most;
  for (std::size_t k = 0; k < count; ++k) {
    const float scaled = x[k] * factor;
    codes[k] = std::isfinite(factor) ? std::nearbyint(static_cast<double>(scaled)) : 0;
  }
  return static_cast<double>(most / 127.0f);
}

}  // namespace

std::uint64_t Random::next() {  // splitmix64
  std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

float Random::real(float most) {
  return most * (static_cast<float>(next() >> 40) * 0x1p-23f - 1.0f);
}

Weight draw(const Layout& layout, bool whole, Random& random) {
  Weight weight;
  weight.layout = layout;
  weight.packed.assign(layout.bytes(), 0);
  weight.dense.assign(layout.out * layout.in, 0.0f);
  weight.scales.assign(layout.out * layout.groups(), 0.0);
  for (std::size_t row = 0; row < 8 * layout.blocks; ++row) draw_row(weight, row, whole, random);
  return weight;
}

Element product(const Weight& weight, const float* x, std::size_t row) {
  const Layout& l = weight.layout;
  Element sum{0, 0};
  const auto add = [&sum](double term) {
    sum.value += term;
    sum.size += std::fabs(term);
  };
  if (l.values == Values::float32) {
    for (std::size_t k = 0; k < l.in; ++k)
      add(static_cast<double>(weight.at(row, k)) * static_cast<double>(x[k]));
    return sum;
  }
  std::vector<double> codes(l.group);
  for (std::size_t g = 0; g < l.groups(); ++g) {
    const std::size_t first = g * l.group, count = std::min(l.group, l.in - first);
    codes.assign(l.group, 0);
    const double scale = round_group(x + first, count, codes);
    double exact = 0;
    for (std::size_t k = 0; k < count; ++k)
      exact += static_cast<double>(weight.at(row, first + k)) * codes[k];
    add(weight.scales[row * l.groups() + g] * scale * exact);
  }
  return sum;
}

}  // namespace check
