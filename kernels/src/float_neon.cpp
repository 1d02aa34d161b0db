// float32 kernels for 64-bit ARM: 32 registers of 4 floats, of which two hold the 8 rows of a block.
#include <arm_neon.h>

#include "float.h"

namespace sparsify::neon {
namespace {

#include "pattern.inl"

struct Row {  // one float for each of the 8 rows of a block
  float32x4_t low, high;
};
struct Word {  // one index word for each row
  uint8x16_t low, high;
};

inline Row zero_row() { return {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)}; }
inline Word load_word(const std::uint8_t* from) { return {vld1q_u8(from), vld1q_u8(from + 16)}; }
inline Row load_row(const float* from) {  // at any address
  const Word bytes = load_word(reinterpret_cast<const std::uint8_t*>(from));
  return {vreinterpretq_f32_u8(bytes.low), vreinterpretq_f32_u8(bytes.high)};
}
inline void store_row(float* to, Row value) {
  vst1q_f32(to, value.low);
  vst1q_f32(to + 4, value.high);
}
inline Row add(Row a, Row b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline Row multiply_add(Row a, Row b, Row c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
template <int bits>
inline Word next_field(Word index) {
  return index;  // `field_bytes` takes the fields from where they are
}
inline void prefetch_far(const void* at) { __builtin_prefetch(at, 0, 2); }
inline void prefetch(const void* at) { __builtin_prefetch(at, 0, 3); }

// The bytes 4 f, 4 f + 1, 4 f + 2, 4 f + 3 of field i of each word, f being its two (M = 4) or three (M = 8)
// low bits: where vqtbl finds a float. The byte that holds the field is copied over its word, the same for
// all its fields, then f is brought to bit 2 and the bits around it are replaced: two instructions a field.
template <std::size_t M>
inline uint8x16_t field_bytes(uint8x16_t words, std::size_t i) {
  constexpr std::size_t bits = float_bits(M);
  const uint32x4_t first_bytes = {0x00000000u, 0x04040404u, 0x08080808u, 0x0c0c0c0cu};
  const auto byte = static_cast<std::uint32_t>(bits * i / 8);
  const uint8x16_t from = vreinterpretq_u8_u32(vaddq_u32(first_bytes, vdupq_n_u32(byte * 0x01010101u)));
  uint8x16_t field = vqtbl1q_u8(words, from);
  switch (bits * i % 8) {
    case 0: field = vshlq_n_u8(field, 2); break;
    case 2: break;
    case 4: field = vshrq_n_u8(field, 2); break;
    default: field = vshrq_n_u8(field, 4);
  }
  return vbslq_u8(vdupq_n_u8(M == 4 ? 0x0c : 0x1c), field, vreinterpretq_u8_u32(vdupq_n_u32(0x03020100u)));
}

// The M activations of a group, where `pick` takes them from.
template <std::size_t M>
struct Group {
  uint8x16_t table;
  void load(const std::uint8_t* x) { table = vld1q_u8(x); }
  float32x4_t find(uint8x16_t from) const { return vreinterpretq_f32_u8(vqtbl1q_u8(table, from)); }
};
template <>
struct Group<8> {
  uint8x16x2_t table;
  void load(const std::uint8_t* x) { table = vld1q_u8_x2(x); }
  float32x4_t find(uint8x16_t from) const { return vreinterpretq_f32_u8(vqtbl2q_u8(table, from)); }
};
template <std::size_t M>
inline Group<M> group(const float* x) {
  Group<M> taken;
  taken.load(reinterpret_cast<const std::uint8_t*>(x));
  return taken;
}
template <std::size_t M>
inline Row pick(const Group<M>& taken, Word index, std::size_t i) {
  return {taken.find(field_bytes<M>(index.low, i)), taken.find(field_bytes<M>(index.high, i))};
}

// Transposes a 4 x 4 square.
inline void transpose_four(float32x4_t& a, float32x4_t& b, float32x4_t& c, float32x4_t& d) {
  const float64x2_t even_ab = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
  const float64x2_t odd_ab = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
  const float64x2_t even_cd = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
  const float64x2_t odd_cd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
  a = vreinterpretq_f32_f64(vtrn1q_f64(even_ab, even_cd));
  b = vreinterpretq_f32_f64(vtrn1q_f64(odd_ab, odd_cd));
  c = vreinterpretq_f32_f64(vtrn2q_f64(even_ab, even_cd));
  d = vreinterpretq_f32_f64(vtrn2q_f64(odd_ab, odd_cd));
}

// Transposes an 8 x 8 square: its quarters, two of which change places.
inline void transpose_rows(Row (&rows)[8]) {
  for (int i = 0; i < 8; i += 4) {
    transpose_four(rows[i].low, rows[i + 1].low, rows[i + 2].low, rows[i + 3].low);
    transpose_four(rows[i].high, rows[i + 1].high, rows[i + 2].high, rows[i + 3].high);
  }
  for (int i = 0; i < 4; ++i) {
    const float32x4_t high = rows[i].high;
    rows[i].high = rows[i + 4].low;
    rows[i + 4].low = high;
  }
}

constexpr std::size_t kFewTokens = 4;  // at once
constexpr std::size_t kFewSums = 4;    // tokens times row blocks at once, two registers each

#include "float_few.inl"

using Lanes = Row;  // 8 tokens of a tile
constexpr std::size_t kLanes = 8;

inline Lanes zero_lanes() { return zero_row(); }
inline Lanes load_lanes(const float* from) { return load_row(from); }
inline void store_lanes(float* to, Lanes value) { store_row(to, value); }
// Four values of a row; one of them for all tokens, which the multiply-add takes from where it is.
using Four = float32x4_t;
inline Four load_four(const float* from) { return vld1q_f32(from); }
inline Lanes one_of(Four four, std::size_t which) {
  const float32x4_t value = which == 0   ? vdupq_laneq_f32(four, 0)
                            : which == 1 ? vdupq_laneq_f32(four, 1)
                            : which == 2 ? vdupq_laneq_f32(four, 2)
                                         : vdupq_laneq_f32(four, 3);
  return {value, value};
}

// A multiply-add takes 4 cycles and two to four start in each: 12 to 24 registers of sums are under way.
constexpr std::size_t kMostLanes = 12;
constexpr std::size_t tile_rows_at_once(std::size_t lanes) {
  return lanes == 1 ? 8 : lanes == 2 ? 4 : lanes <= 6 ? 2 : 1;
}
#define SPARSIFY_WIDTHS                                                                    \
  SPARSIFY_WIDTH(1) SPARSIFY_WIDTH(2) SPARSIFY_WIDTH(3) SPARSIFY_WIDTH(4) SPARSIFY_WIDTH(6) \
  SPARSIFY_WIDTH(8) SPARSIFY_WIDTH(10) SPARSIFY_WIDTH(12)

#include "float_tile.inl"

constexpr std::size_t kFewLimit = 16;  // reckoned from the instructions of both ways, not measured

}  // namespace

const FloatKernels kFloats = {few, kFewLimit, tile_width, transpose, tile};

}  // namespace sparsify::neon
