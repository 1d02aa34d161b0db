// Several tokens: a scale group of a few row blocks is unpacked once, to memory that stays in the first
// cache, and used by tiles of tokens. Included after rounded_x86.inl.

#ifndef KT
#define KT 128
#endif
constexpr std::size_t kTokens = KT;  // of one pass over the weights: their codes of a group stay in that cache
constexpr std::size_t kVecBytes = 32 * kBlocks;

// Unpacked scale group of `vecs` vectors of row blocks: for each slot and vector the indices and the weights,
// then for each vector the start of its sums, the scales.
struct Scratch {
  Byte* slots;
  Byte* start;
  float* scales;
  float* sums;  // [tokens][vecs * 8 * kBlocks]
};

#ifndef FEW
#define FEW 9
#endif
#ifndef KS
#define KS 2
#endif
constexpr std::size_t kSets = KS;
constexpr std::size_t kSlotsBytes = kMaxSlots * kVecs * 2 * kVecBytes;
constexpr std::size_t kSumsBytes = kTokens * kVecs * kVecBytes;
constexpr std::size_t kSetBytes = kSlotsBytes + 2 * kVecs * kVecBytes + kSumsBytes;
constexpr std::size_t kWorkBytes = 64 + kSets * kSetBytes;

SPARSIFY_INLINE Scratch cut(Byte* work, std::size_t set) {
  Byte* p = work + (64 - reinterpret_cast<std::uintptr_t>(work) % 64) % 64 + set * kSetBytes;
  Byte* start = p + kSlotsBytes;
  Byte* scales = start + kVecs * kVecBytes;
  return {p, start, reinterpret_cast<float*>(scales), reinterpret_cast<float*>(scales + kVecs * kVecBytes)};
}

SPARSIFY_INLINE void prefetch(const Byte* p, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T0);
}

// Unpacks the slots 4c .. 4c + 3, `count` of which exist.
template <int N, int M, bool kNibbles>
SPARSIFY_INLINE Byte* unpack_chunk(const Parts& parts, std::size_t c, std::size_t count, const Places& places, Byte* to,
                          std::size_t pitch, __m256i& excess) {
  using P = Pattern<N, M>;
  const Indices<N, M> indices(parts, c, c % 2 != 0);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i, to += pitch) {
    if (static_cast<std::size_t>(i) >= count) break;
    __m256i index = indices.slot(i), weight = weights<kNibbles>(parts, c, i);
    if (!P::kEven) index = _mm256_or_si256(index, _mm256_set1_epi32(places.offsets[4 * c + i]));
    prepare<P::kWindow, kNibbles, kNibbles && P::kEven>(index, weight, excess);
    store_bytes(to, index);
    store_bytes(to + kVecBytes, weight);
  }
  return to;
}

// Unpacks one scale group of a row block; `pitch` bytes from slot to slot.
template <int N, int M, bool kNibbles>
SPARSIFY_INLINE void unpack_block(const Byte* group, std::size_t slots, const Places& places, Byte* to, std::size_t pitch,
                         Byte* start, float* scales) {
  const Parts parts = parts_of<M>(group, slots);
  __m256i excess = _mm256_setzero_si256();
  std::size_t c = 0;
  for (; 4 * c + 4 <= slots; ++c) to = unpack_chunk<N, M, kNibbles>(parts, c, 4, places, to, pitch, excess);
  if (4 * c < slots) unpack_chunk<N, M, kNibbles>(parts, c, slots - 4 * c, places, to, pitch, excess);
  store_bytes(start, minus<kNibbles && Pattern<N, M>::kEven>(excess));
  _mm256_storeu_ps(scales, load_scales<kNibbles>(parts.scales));
}

// A row block that does not exist, beside the last one: zeros.
inline void clear_block(std::size_t slots, Byte* to, std::size_t pitch, Byte* start, float* scales) {
  const __m256i zero = _mm256_setzero_si256();
  for (std::size_t s = 0; s < slots; ++s, to += pitch) {
    store_bytes(to, zero);
    store_bytes(to + kVecBytes, zero);
  }
  store_bytes(start, zero);
  _mm256_storeu_ps(scales, _mm256_setzero_ps());
}

// Adds one scale group to the sums of T tokens and R vectors of row blocks; I counts them all, so that the
// sums of the slots are variables, not an array. `codes` and `scales` are those of the first token.
template <int kWindow, bool kEven, bool kNibbles, int R, int... I>
void tile(Sequence<I...>, const Scratch& scratch, std::size_t slots, const Places& places, const Byte* codes,
          std::size_t stride, const float* scales, std::size_t groups, float* sums) {
  constexpr bool kWide = !kNibbles || !kEven;  // more slots than 16-bit sums can hold
  Vec acc[] = {begin<kNibbles>(scratch.start + kVecBytes * (I % R))...};
  const Byte* p = scratch.slots;
  const auto slot = [&](const Byte* at) __attribute__((always_inline)) {
    Table<kWindow, kNibbles> table;
    (((I % R == 0 ? table.load(at + I / R * stride) : void()),
      acc[I] = dot<kWindow, kNibbles, kWide>(acc[I], kept(table.find(load_vec(p + 2 * kVecBytes * (I % R)))),
                                             load_vec(p + 2 * kVecBytes * (I % R) + kVecBytes))),
     ...);
    p += R * 2 * kVecBytes;
  };
  constexpr std::size_t step = kWindow * code_width(kWindow, kNibbles);
  if constexpr (kEven && kWindow < 32) {  // an even number of slots
    for (std::size_t s = 0; s < slots; s += 2, codes += 2 * step) {
      slot(codes);
      slot(codes + step);
    }
  } else {
    for (std::size_t s = 0; s < slots; ++s) slot(codes + (kEven ? s * step : places.column[s] * step / kWindow));
  }
  const float* by = scratch.scales;
  (add_group(sums + I * 8 * kBlocks, by + 8 * kBlocks * (I % R), scales[I / R * groups], end<kWide>(acc[I])), ...);
}

template <int kWindow, bool kEven, bool kNibbles, int R>
SPARSIFY_INLINE void tiles(const Scratch* scratch, std::size_t sets, std::size_t slots, const Places& places,
                  const Byte* codes, std::size_t stride, const float* scales, std::size_t groups,
                  std::size_t tokens) {
  constexpr std::size_t width = R * 8 * kBlocks;
  std::size_t t = 0;
#define SPARSIFY_TILE(T)                                                                               \
  for (; t + T <= tokens; t += T) {                                                                    \
    for (std::size_t i = 0; i < sets; ++i) {                                                           \
      tile<kWindow, kEven, kNibbles, R>(Count<T * R>(), scratch[i], slots, places, codes + t * stride, \
                                        stride, scales + t * groups, groups, scratch[i].sums + t * width); \
    }                                                                                                  \
  }
  if (kTile == 8) SPARSIFY_TILE(8)
  SPARSIFY_TILE(4)
  SPARSIFY_TILE(2)
  SPARSIFY_TILE(1)
#undef SPARSIFY_TILE
}

// `sets` times R vectors of row blocks from `block` on, `have` of whose blocks exist, for the tokens of one pass.
template <int N, int M, bool kNibbles, int R>
void pass(const Layout& l, const Byte* packed, std::size_t block, std::size_t sets, std::size_t have,
          const Places& places, const Byte* codes, const float* scales, std::size_t tokens, const float* bias,
          float* y, const Scratch* scratch) {
  using P = Pattern<N, M>;
  constexpr std::size_t pitch = R * 2 * kVecBytes, width = R * 8 * kBlocks;
  const std::size_t groups = l.padded / l.group, bytes = l.block_bytes / groups, stride = code_stride(l);
  for (std::size_t s = 0; s < sets; ++s) {
    for (std::size_t i = 0; i < tokens * width; i += 8) _mm256_storeu_ps(scratch[s].sums + i, _mm256_setzero_ps());
  }
  for (std::size_t g = 0; g < groups; ++g) {
    for (std::size_t s = 0, i = 0; s < sets; ++s) {
      for (std::size_t b = 0; b < R * kBlocks; ++b, ++i) {
        Byte* to = scratch[s].slots + b / kBlocks * 2 * kVecBytes + b % kBlocks * 32;
        Byte* start = scratch[s].start + 32 * b;
        if (i < have) {
          const Byte* group = packed + (block + i) * l.block_bytes + g * bytes;
          prefetch(group + bytes + (g + 1 < groups ? 0 : (sets * R * kBlocks - 1) * l.block_bytes), bytes);
          unpack_block<N, M, kNibbles>(group, l.slots, places, to, pitch, start, scratch[s].scales + 8 * b);
        } else {
          clear_block(l.slots, to, pitch, start, scratch[s].scales + 8 * b);
        }
      }
    }
    tiles<P::kWindow, P::kEven, kNibbles, R>(scratch, sets, l.slots, places,
                                             codes + g * l.group * code_width(P::kWindow, kNibbles), stride, scales + g,
                                             groups, tokens);
  }
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t i = 0; i < have; ++i) {
      const float* sum = scratch[i / (R * kBlocks)].sums + t * width + 8 * (i % (R * kBlocks));
      store_rows(l, block + i, _mm256_loadu_ps(sum), bias, y + t * l.out);
    }
  }
}

template <int N, int M, bool kNibbles>
void product(const Layout& l, const Byte* packed, const Byte* codes, const float* scales, std::size_t tokens,
             const float* bias, float* y, std::size_t first, std::size_t last, Byte* work) {
  if constexpr (Pattern<N, M>::kWindow < 32 && Pattern<N, M>::kEven) {
    if (tokens < FEW) {
      constexpr std::size_t usual = 128 * N / (4 * M);  // slots of 128 columns
      const auto run = l.slots == usual ? few<N, M, kNibbles, usual> : few<N, M, kNibbles, 0>;
      return run(l, packed, codes, scales, tokens, bias, y, first, last);
    }
  }
  Scratch scratch[kSets];
  for (std::size_t s = 0; s < kSets; ++s) scratch[s] = cut(work, s);
  Places places;
  if (!Pattern<N, M>::kEven) find_places(l.n, l.slots, places);
  const std::size_t groups = l.padded / l.group, stride = code_stride(l);
  for (std::size_t t = 0; t < tokens; t += kTokens) {
    const std::size_t some = tokens - t < kTokens ? tokens - t : kTokens;
    const Byte* from = codes + t * stride;
    const float* by = scales + t * groups;
    float* to = y + t * l.out;
    constexpr std::size_t full = kVecs * kBlocks;
    for (std::size_t block = first; block < last;) {
      const std::size_t left = last - block;
      if (left >= full) {
        const std::size_t sets = left / full < kSets ? left / full : kSets;
        pass<N, M, kNibbles, kVecs>(l, packed, block, sets, sets * full, places, from, by, some, bias, to, scratch);
        block += sets * full;
      } else {
        const std::size_t have = left < kBlocks ? left : kBlocks;
        pass<N, M, kNibbles, 1>(l, packed, block, 1, have, places, from, by, some, bias, to, scratch);
        block += have;
      }
    }
  }
}

using Product = void (*)(const Layout&, const Byte* packed, const Byte* codes, const float* scales,
                         std::size_t tokens, const float* bias, float* y, std::size_t first, std::size_t last,
                         Byte* work);

template <bool kNibbles>
inline Product choose_pattern(const Layout& l) {
  if (l.m == 4) return l.n == 1 ? product<1, 4, kNibbles> : product<2, 4, kNibbles>;
  switch (l.n) {
    case 1: return product<1, 8, kNibbles>;
    case 2: return product<2, 8, kNibbles>;
    case 4: return product<4, 8, kNibbles>;
    default: return product<0, 8, kNibbles>;
  }
}

inline Product choose(const Layout& l) {
  return l.values == Values::int4 ? choose_pattern<true>(l) : choose_pattern<false>(l);
}
