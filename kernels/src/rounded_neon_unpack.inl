// The packed int8 and int4 stream, taken apart in pairs of 128-bit vectors: one block of 8 rows, four bytes a
// row. Included into rounded_neon.cpp.

using Byte = std::uint8_t;

struct Pair {  // four bytes of each of the rows 0 to 3, and 4 to 7
  uint8x16_t low, high;
};

inline Pair load_pair(const Byte* p) { return {vld1q_u8(p), vld1q_u8(p + 16)}; }
inline void store_pair(Byte* p, Pair v) {
  vst1q_u8(p, v.low);
  vst1q_u8(p + 16, v.high);
}

constexpr std::size_t kMaxSlots = 28;  // 7:8 with 128 columns

// Where the slots of a scale group find their activations: the first column within reach, and what is to be
// added to the indices of the four entries. All reach 16 columns at most, those of 1:8 reach 32.
struct Places {
  std::uint16_t column[kMaxSlots];
  std::uint32_t offsets[kMaxSlots];
};

inline void find_places(const Layout& l, Places& places) {
  for (std::size_t s = 0; s < l.slots; ++s) {
    const std::size_t first = 4 * s / l.n;  // group of M columns
    places.column[s] = static_cast<std::uint16_t>(first * l.m);
    std::uint32_t offsets = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      offsets |= static_cast<std::uint32_t>(((4 * s + i) / l.n - first) * l.m) << (8 * i);
    }
    places.offsets[s] = offsets;
  }
}

// The weights of four bits are used sixteen times as large: that is how they come out of their byte without a
// subtraction. Sums are brought back by a shift, which is exact.
constexpr int kNibbleBits = 4;

struct Slot {
  Pair index;   // of a column within reach
  Pair weight;
};

// The bit planes of four slots.
template <int M>
struct Planes {
  Pair low, third;

  Planes(const Byte* planes, std::size_t slots, std::size_t chunk)
      : low(load_pair(planes + 32 * chunk)), third() {
    if (M == 4) return;
    third = load_pair(planes + 32 * ((slots + 3) / 4 + chunk / 2));
    const int8x16_t down = vdupq_n_s8(chunk % 2 ? -4 : 0);
    third = {vshlq_u8(third.low, down), vshlq_u8(third.high, down)};
  }
};

// Moves bits `from` and above to `to`.
template <int from, int to>
inline uint8x16_t move_bits(uint8x16_t v) {
  if constexpr (from > to) return vshrq_n_u8(v, from - to);
  if constexpr (from < to) return vshlq_n_u8(v, to - from);
  return v;
}

// Indices of the slot J of four.
template <int M, int J>
inline uint8x16_t indices(uint8x16_t low, uint8x16_t third, uint8x16_t offsets) {
  const uint8x16_t index = vbslq_u8(vdupq_n_u8(3), move_bits<2 * J, 0>(low), offsets);
  return M == 4 ? index : vbslq_u8(vdupq_n_u8(4), move_bits<J, 2>(third), index);
}

template <bool kNibbles, int J>
inline uint8x16_t weights(const Byte* p) {
  const uint8x16_t v = vld1q_u8(p);
  if (!kNibbles) return v;
  const uint8x16_t centred = veorq_u8(v, vdupq_n_u8(0x88));
  return J % 2 ? vandq_u8(centred, vdupq_n_u8(0xf0)) : vshlq_n_u8(centred, 4);
}

template <int M, bool kNibbles, int J>
inline Slot slot_of(const Planes<M>& planes, const Byte* values, const std::uint32_t* offsets) {
  const uint8x16_t by = vreinterpretq_u8_u32(vdupq_n_u32(offsets[J]));
  const Byte* p = values + 32 * (kNibbles ? J / 2 : J);
  return {{indices<M, J>(planes.low.low, planes.third.low, by),
           indices<M, J>(planes.low.high, planes.third.high, by)},
          {weights<kNibbles, J>(p), weights<kNibbles, J>(p + 16)}};
}

// Calls use(s, slot) for the slots of a scale group of one row block.
template <int M, bool kNibbles, typename Use>
inline void each_slot(const Byte* group, std::size_t slots, const Places& places, Use&& use) {
  const Byte* low = group + 16;  // behind the scales
  const Byte* values = low + 32 * ((slots + 3) / 4 + (M == 8 ? (slots + 7) / 8 : 0));
  for (std::size_t s = 0; s < slots; s += 4, values += kNibbles ? 64 : 128) {
    const Planes<M> planes(low, slots, s / 4);
    const std::uint32_t* offsets = places.offsets + s;
    use(s, slot_of<M, kNibbles, 0>(planes, values, offsets));
    if (s + 1 < slots) use(s + 1, slot_of<M, kNibbles, 1>(planes, values, offsets));
    if (s + 2 < slots) use(s + 2, slot_of<M, kNibbles, 2>(planes, values, offsets));
    if (s + 3 < slots) use(s + 3, slot_of<M, kNibbles, 3>(planes, values, offsets));
  }
}
