// The packed int8 and int4 stream, taken apart in 256-bit vectors: one block of 8 rows, four bytes a row.
// Included inside the namespace of an instruction set, which provides before it
//   __m256i merge(__m256i x, __m256i mask, __m256i bits)     (x & mask) | bits
//   __m256i low_nibbles(__m256i), high_nibbles(__m256i)      weights of four bits, times kNibbleFactor
//   V in_order(V)                                            its argument; see there

using Byte = std::uint8_t;

SPARSIFY_INLINE __m256i load_bytes(const Byte* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

SPARSIFY_INLINE __m256i every_byte(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }

// Four bytes, the same for each row.
constexpr int four(int a, int b, int c, int d) { return a | b << 8 | c << 16 | d << 24; }

// Where the four entries of a slot find their activations. A slot of 1:4, 2:4, 1:8, 2:8 or 4:8 begins with a
// group of M columns, so these are constants. N = 0 stands for the other N:8, whose slots begin anywhere and
// reach into two groups at most: their places are computed once (`Places`).
template <int N, int M>
struct Pattern {
  static constexpr bool kEven = N != 0;
  static constexpr int kWindow = kEven ? 4 * M / (kEven ? N : 1) : 16;  // columns within reach of a slot
  // What is to be added to the index of an entry: bit 2, then bit 3. In a window of 32 columns two entries
  // look at its lower half and two at its upper half.
  static constexpr int kBit2 = M == 4 ? (N == 1 ? four(0, 4, 0, 4) : four(0, 0, 4, 4)) : 0;
  static constexpr int kBit3 =
      kWindow == 8 || !kEven ? 0 : (kWindow == 32 ? four(0, 8, 0, 8) : four(0, 0, 8, 8));
};

constexpr std::size_t kMaxSlots = 28;  // 7:8 with 128 columns

struct Places {
  std::uint16_t column[kMaxSlots];  // of the first group of a slot, in bytes of codes
  int offsets[kMaxSlots];           // of its four entries
};

inline void find_places(std::size_t n, std::size_t slots, std::size_t code_width, Places& places) {
  for (std::size_t s = 0; s < slots; ++s) {
    const std::size_t group = 4 * s / n;
    int offsets = 0;
    for (std::size_t i = 0; i < 4; ++i) offsets |= ((4 * s + i) / n != group ? 8 : 0) << (8 * i);
    places.column[s] = static_cast<std::uint16_t>(8 * group * code_width);
    places.offsets[s] = offsets;
  }
}

// Asks for `bytes` bytes, `ahead` of an address that need not exist.
SPARSIFY_INLINE const char* ahead_of(const Byte* p, std::size_t ahead) {
  return reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(p) + ahead);
}
SPARSIFY_INLINE void prefetch_far(const Byte* p, std::size_t ahead, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) _mm_prefetch(ahead_of(p, ahead + i), _MM_HINT_T1);
}
SPARSIFY_INLINE void prefetch(const Byte* p, std::size_t ahead, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) _mm_prefetch(ahead_of(p, ahead + i), _MM_HINT_T0);
}

// Parts of one scale group of a row block.
struct Parts {
  const Byte* scales;
  const Byte* low;     // two bits of the indices of four slots a vector
  const Byte* third;   // the third bit of the indices of eight slots a vector
  const Byte* values;
};

template <int M>
SPARSIFY_INLINE Parts parts_of(const Byte* group, std::size_t slots) {
  const Byte* low = group + 16;
  const Byte* third = low + (slots + 3) / 4 * 32;
  return {group, low, third, M == 8 ? third + (slots + 7) / 8 * 32 : third};
}

// Shuffle indices of the slots 4c .. 4c + 3: bits 0 to 3 of each byte; bits 4 to 6 may hold anything, which
// the shuffle ignores, bit 7 is 0. Slots 0 and 2 share one vector, 1 and 3 the other, four bits apart, so
// that masks and offsets are applied once for two slots. The third bits come through a table of the four.
template <int N, int M>
struct Indices {
  __m256i even, odd;

  SPARSIFY_INLINE Indices(const Parts& parts, std::size_t c, bool upper) {
    const __m256i low = in_order(load_bytes(parts.low + 32 * c));
    __m256i even_bits = _mm256_set1_epi32(Pattern<N, M>::kBit2 * 0x11), odd_bits = even_bits;
    if (M == 8) {
      __m256i third = load_bytes(parts.third + 32 * (c / 2));
      if (upper) third = _mm256_srli_epi16(third, 4);
      third = _mm256_and_si256(third, every_byte(0x0f));
      // Bits 0 and 2 of the four to 2 and 6; bits 1 and 3.
      even_bits = _mm256_shuffle_epi8(_mm256_set1_epi64x(0x4440444004000400), third);
      odd_bits = _mm256_shuffle_epi8(_mm256_set_epi64x(0x4444404044444040, 0x0404000004040000,
                                                       0x4444404044444040, 0x0404000004040000), third);
    }
    even = merge(low, every_byte(0x33), even_bits);
    odd = merge(_mm256_srli_epi16(low, 2), every_byte(0x33), odd_bits);
  }

  SPARSIFY_INLINE __m256i slot(int i) const {
    __m256i index = i % 2 == 0 ? even : odd;
    if (i >= 2) index = _mm256_srli_epi16(index, 4);
    constexpr int bit3 = Pattern<N, M>::kBit3;
    return bit3 == 0 ? index : _mm256_or_si256(index, _mm256_set1_epi32(bit3));
  }
};

// The weights of slot 4c + i.
template <bool kNibbles>
SPARSIFY_INLINE __m256i weights(const Parts& parts, std::size_t c, int i) {
  if (!kNibbles) return load_bytes(parts.values + 128 * c + 32 * i);
  const __m256i two = in_order(load_bytes(parts.values + 64 * c + 32 * (i / 2)));
  return i % 2 == 0 ? low_nibbles(two) : high_nibbles(two);
}
