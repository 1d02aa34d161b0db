// int8 and int4 products for 64-bit ARM with dot products: `sdot` adds four products of signed bytes to each
// of four sums, so codes and weights are used as they are.
#include <arm_neon.h>

#include "rounded.h"

namespace sparsify {
namespace neon {
namespace {

#include "rounded_neon_unpack.inl"

#define SPARSIFY_UNROLL _Pragma("GCC unroll 64")

struct Floats {  // one for each row of a block
  float32x4_t low, high;
};
struct Sums {
  int32x4_t low, high;
};

inline Floats load_floats(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void store_floats(float* p, Floats v) {
  vst1q_f32(p, v.low);
  vst1q_f32(p + 4, v.high);
}

inline Floats load_scales(const Byte* p) {
  const float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(p));
  return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}

// The codes within reach of a slot.
template <bool kWide>
struct Table {
  uint8x16_t codes;
  explicit Table(const Byte* p) : codes(vld1q_u8(p)) {}
  int8x16_t find(uint8x16_t index) const { return vreinterpretq_s8_u8(vqtbl1q_u8(codes, index)); }
};
template <>
struct Table<true> {
  uint8x16x2_t codes;
  explicit Table(const Byte* p) : codes(vld1q_u8_x2(p)) {}
  int8x16_t find(uint8x16_t index) const { return vreinterpretq_s8_u8(vqtbl2q_u8(codes, index)); }
};

template <bool kWide>
inline void add_slot(Sums& sums, const Table<kWide>& table, const Slot& slot) {
  sums.low = vdotq_s32(sums.low, vreinterpretq_s8_u8(slot.weight.low), table.find(slot.index.low));
  sums.high = vdotq_s32(sums.high, vreinterpretq_s8_u8(slot.weight.high), table.find(slot.index.high));
}

// What is added to `to` by a scale group, in the order of reference.cpp.
template <bool kNibbles>
inline void add_group(Floats& to, Sums sums, Floats weight_scales, float scale) {
  if (kNibbles) sums = {vshrq_n_s32(sums.low, kNibbleBits), vshrq_n_s32(sums.high, kNibbleBits)};
  to.low = vfmaq_f32(to.low, vcvtq_f32_s32(sums.low), vmulq_n_f32(weight_scales.low, scale));
  to.high = vfmaq_f32(to.high, vcvtq_f32_s32(sums.high), vmulq_n_f32(weight_scales.high, scale));
}

// Everything of a product but its range of rows.
struct Product {
  const Layout& l;
  const Byte* packed;
  const Byte* codes;
  const float* scales;
  std::size_t tokens;
  const float* bias;
  float* y;
  std::size_t groups, group_bytes;
  Places places;

  const Byte* group(std::size_t block, std::size_t g) const {
    return packed + block * l.block_bytes + g * group_bytes;
  }
  // Codes are [groups][tokens][group] and scales [groups][tokens], so that what a scale group of the weights
  // needs of all tokens lies in one piece.
  const Byte* codes_of(std::size_t token, std::size_t g) const { return codes + (g * tokens + token) * l.group; }
  float scale_of(std::size_t token, std::size_t g) const { return scales[g * tokens + token]; }

  // Rows beyond `out` exist in the last block only.
  void store(std::size_t token, std::size_t block, Floats sum) const {
    const std::size_t row = kRows * block, rows = l.out - row;
    float* to = y + token * l.out + row;
    if (rows >= kRows) {
      if (bias) {
        const Floats b = load_floats(bias + row);
        sum = {vaddq_f32(sum.low, b.low), vaddq_f32(sum.high, b.high)};
      }
      return store_floats(to, sum);
    }
    float values[kRows];
    store_floats(values, sum);
    for (std::size_t r = 0; r < rows; ++r) to[r] = values[r] + (bias ? bias[row + r] : 0.0f);
  }
};

#include "rounded_neon_few.inl"
#include "rounded_neon_tile.inl"

// Rounds one scale group, `group` floats, and returns its scale. NaN and infinity have the largest bits.
inline float round_group(const float* x, std::size_t group, Byte* codes) {
  uint32x4_t largest = vdupq_n_u32(0);
  for (std::size_t i = 0; i < group; i += 4) {
    const uint32x4_t magnitude = vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i)));
    largest = vmaxq_u32(largest, magnitude);
  }
  const std::uint32_t bits = vmaxvq_u32(largest);
  float top;
  __builtin_memcpy(&top, &bits, sizeof top);
  const bool finite = bits < 0x7f800000u;
  // 127 / top is infinite where top is tiny: such a group counts as zeros, like one that is not finite, of
  // which a conversion to int makes zeros.
  const float quotient = finite && top > 0.0f ? 127.0f / top : 0.0f;
  const float factor = quotient <= __FLT_MAX__ ? quotient : 0.0f;
  for (std::size_t i = 0; i < group; i += 16) {
    int16x4_t v[4];
    for (std::size_t k = 0; k < 4; ++k) {
      v[k] = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4 * k), factor)));
    }
    const int8x8_t low = vqmovn_s16(vcombine_s16(v[0], v[1])), high = vqmovn_s16(vcombine_s16(v[2], v[3]));
    vst1q_u8(codes + i, vreinterpretq_u8_s8(vcombine_s8(low, high)));
  }
  return finite ? top / 127.0f : __builtin_nanf("");
}

}  // namespace

// With room for a table that begins in the last group of M columns.
std::size_t code_bytes(const Layout& l, std::size_t tokens) { return tokens * l.padded + 16; }

void quantize(const Layout& l, const float* x, std::size_t tokens, std::size_t first, std::size_t last,
              std::uint8_t* codes, float* scales) {
  for (std::size_t t = first; t < last; ++t) {
    for (std::size_t g = 0; g < l.groups(); ++g) {
      const std::size_t k = g * l.group;
      const float* from = x + t * l.in + k;
      float tail[128];
      if (k + l.group > l.in) {
        for (std::size_t i = 0; i < l.group; ++i) tail[i] = k + i < l.in ? from[i] : 0.0f;
        from = tail;
      }
      const std::size_t place = g * tokens + t;
      scales[place] = round_group(from, l.group, codes + place * l.group);
    }
  }
}

std::size_t work_bytes(const Layout&) { return kWorkBytes; }

void rounded(const Layout& l, const std::uint8_t* packed, const std::uint8_t* codes, const float* scales,
             std::size_t tokens, const float* bias, float* y, std::size_t first, std::size_t last,
             std::uint8_t* work) {
  const std::size_t groups = l.padded / l.group;
  Product p{l, packed, codes, scales, tokens, bias, y, groups, l.block_bytes / groups, {}};
  find_places(l, p.places);
  if (l.values == Values::int4) {
    run_pattern<true>(p, first, last, work);
  } else {
    run_pattern<false>(p, first, last, work);
  }
}

}  // namespace neon
}  // namespace sparsify
