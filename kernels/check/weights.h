// Random weights, packed as docs/packed.md says and dense beside it, and the product of the dense one.
// Nothing here is shared with the kernels but the sizes of a layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "layout.h"

namespace check {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  std::size_t below(std::size_t bound) { return static_cast<std::size_t>(next() >> 11) % bound; }
  int between(int low, int high) {
    return low + static_cast<int>(below(static_cast<std::size_t>(high - low + 1)));
  }
  float real(float most);  // from -most to most

 private:
  std::uint64_t state_;
};

struct Weight {
  sparsify::Layout layout;
  std::vector<std::uint8_t> packed;
  std::vector<float> dense;    // [out][in]: values, or codes
  std::vector<double> scales;  // [out][groups]

  float at(std::size_t row, std::size_t column) const { return dense[row * layout.in + column]; }
};

// `whole`: float32 values that are small whole numbers, whose sums are exact in any order.
Weight draw(const sparsify::Layout& layout, bool whole, Random& random);

// One element of the product, and the size of its terms, which bounds the error of a sum.
struct Element {
  double value, size;
};
Element product(const Weight& weight, const float* x, std::size_t row);

}  // namespace check
