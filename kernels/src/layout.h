// The packed layout of one N:M weight, as written down in docs/packed.md.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsify {

enum class Values : int { float32 = 0, int8 = 1, int4 = 2 };

constexpr std::size_t kRows = 8;  // rows of a block: one AVX register, half an AVX-512 one, two NEON ones

struct Layout {
  std::size_t n, m;                // N of M consecutive columns are stored
  std::size_t in, out;             // features
  Values values;
  std::size_t group;               // columns that share a scale; 0 for float32

  // Derived by `derive`.
  std::size_t span;                // columns are padded to a multiple of this
  std::size_t padded;              // in, padded
  std::size_t blocks;              // row blocks
  std::size_t block_bytes;         // bytes of one row block
  std::size_t slots;               // int8 and int4: slots of one scale group

  std::size_t bytes() const { return blocks * block_bytes; }
  std::size_t groups() const { return group ? padded / group : 0; }
};

// Fields of an index word of the float32 layout, and their bits.
constexpr std::size_t float_fields(std::size_t m) { return m == 4 ? 16 : 8; }
constexpr std::size_t float_bits(std::size_t m) { return m == 4 ? 2 : 4; }
constexpr std::size_t float_chunk_bytes(std::size_t m) { return 32 + 32 * float_fields(m); }

constexpr std::size_t gcd(std::size_t a, std::size_t b) { return b == 0 ? a : gcd(b, a % b); }

// Bytes of one scale group of a row block.
constexpr std::size_t group_bytes(std::size_t m, std::size_t slots, bool nibbles) {
  return 16 + 32 * ((slots + 3) / 4 + (m == 8 ? (slots + 7) / 8 : 0) + (nibbles ? (slots + 1) / 2 : slots));
}

// Fills the derived fields. Returns nullptr, or a sentence that says what is wrong with the given ones.
const char* derive(Layout& layout);

// Checks the content of packed bytes (an index beyond the group, a nonzero spare bit). Returns nullptr or
// a sentence. The kernels stay inside their buffers for any content: this finds damaged files early.
const char* inspect(const Layout& layout, const std::uint8_t* packed);

}  // namespace sparsify
