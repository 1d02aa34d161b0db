// float16 to float32 where the processor has no instruction for it.
#pragma once

#include <cstdint>
#include <cstring>

namespace sparsify {

inline float half_to_float(const std::uint8_t* bytes) {
  const std::uint32_t half = static_cast<std::uint32_t>(bytes[0]) | (static_cast<std::uint32_t>(bytes[1]) << 8);
  const std::uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 1023u;
  std::uint32_t bits;
  if (exponent == 31u) {
    bits = sign | 0x7f800000u | (fraction << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112u) << 23) | (fraction << 13);
  } else {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // zero or subnormal: exact
    std::memcpy(&bits, &magnitude, sizeof bits);
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace sparsify
