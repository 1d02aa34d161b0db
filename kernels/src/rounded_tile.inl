// Many tokens: scale groups of a few row blocks are unpacked once, to memory that stays in the first cache,
// and used by tiles of tokens. Included after rounded_few.inl, with the operations on a vector (`Vec`) of
// kBlocks row blocks.

constexpr std::size_t kTokens = 128;  // at most in one pass over the weights
constexpr std::size_t kSets = 2;      // of kVecs vectors of row blocks for each reading of the codes
constexpr std::size_t kVecBytes = 32 * kBlocks;

// One unpacked scale group of R vectors of row blocks, and the sums of all groups.
struct Set {
  Byte* slots;    // for each slot and vector the indices and the weights
  Byte* starts;   // for each vector what its sums begin with
  float* scales;  // of the rows
  float* sums;    // [tokens][R * 8 * kBlocks]
};

constexpr std::size_t kSlotsBytes = kMaxSlots * kVecs * 2 * kVecBytes;
constexpr std::size_t kSetBytes = kSlotsBytes + 2 * kVecs * kVecBytes + kTokens * kVecs * kVecBytes;
constexpr std::size_t kWorkBytes = 64 + kSets * kSetBytes;

SPARSIFY_INLINE Set cut(Byte* work, std::size_t index) {
  Byte* slots = work + (64 - reinterpret_cast<std::uintptr_t>(work) % 64) % 64 + index * kSetBytes;
  Byte* starts = slots + kSlotsBytes;
  Byte* scales = starts + kVecs * kVecBytes;
  Byte* sums = scales + kVecs * kVecBytes;
  return {slots, starts, reinterpret_cast<float*>(scales), reinterpret_cast<float*>(sums)};
}

// Unpacks the slots 4c .. 4c + 3, `count` of which exist; returns the place of the next one.
template <int N, int M, bool kNibbles>
SPARSIFY_INLINE Byte* unpack_chunk(const Parts& parts, std::size_t c, int count, const Places& places,
                                   Byte* to, std::size_t pitch, __m256i& excess) {
  using P = Pattern<N, M>;
  const Indices<N, M> indices(parts, c, c % 2 != 0);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i, to += pitch) {
    if (i >= count) break;
    __m256i index = indices.slot(i), weight = weights<kNibbles>(parts, c, i);
    if (!P::kEven) {
      const int offsets = places.offsets[4 * c + static_cast<std::size_t>(i)];
      index = _mm256_or_si256(index, _mm256_set1_epi32(offsets));
    }
    prepare<P::kWindow, kNibbles, P::kEven>(index, weight, excess);
    store_bytes(to, index);
    store_bytes(to + kVecBytes, weight);
  }
  return to;
}

// Unpacks one scale group of the row block that is number `part` of a set of R vectors.
template <int N, int M, bool kNibbles, int R>
SPARSIFY_INLINE void unpack_block(const Byte* group, std::size_t slots, const Places& places, const Set& set,
                                  std::size_t part) {
  constexpr std::size_t pitch = R * 2 * kVecBytes;
  const Parts parts = parts_of<M>(group, slots);
  Byte* to = set.slots + part / kBlocks * 2 * kVecBytes + part % kBlocks * 32;
  __m256i excess = _mm256_setzero_si256();
  std::size_t c = 0;
  for (; 4 * c + 4 <= slots; ++c) to = unpack_chunk<N, M, kNibbles>(parts, c, 4, places, to, pitch, excess);
  if (4 * c < slots) {
    unpack_chunk<N, M, kNibbles>(parts, c, static_cast<int>(slots - 4 * c), places, to, pitch, excess);
  }
  store_bytes(set.starts + 32 * part, negative<kNibbles, Pattern<N, M>::kEven>(excess));
  _mm256_storeu_ps(set.scales + kRows * part, load_scales<kNibbles>(parts.scales));
}

// A row block that does not exist, beside the last one.
template <int R>
inline void clear_block(std::size_t slots, const Set& set, std::size_t part) {
  Byte* to = set.slots + part / kBlocks * 2 * kVecBytes + part % kBlocks * 32;
  for (std::size_t s = 0; s < slots; ++s, to += R * 2 * kVecBytes) {
    store_bytes(to, _mm256_setzero_si256());
    store_bytes(to + kVecBytes, _mm256_setzero_si256());
  }
  store_bytes(set.starts + 32 * part, _mm256_setzero_si256());
  _mm256_storeu_ps(set.scales + kRows * part, _mm256_setzero_ps());
}

// Adds one scale group to the sums of T tokens and R vectors of row blocks, which I counts. `codes` and
// `scales` are those of the group and the first token.
template <int kWindow, bool kEven, bool kNibbles, int R, int... I>
void tile(Sequence<I...>, const Set& set, std::size_t slots, const Places& places, const Byte* codes,
          std::size_t stride, const float* scales, float* sums) {
  constexpr std::size_t step = kWindow * code_width(kWindow, kNibbles);
  Vec acc[] = {begin<kNibbles>(set.starts + kVecBytes * (I % R))...};
  const Byte* next = set.slots;
  const auto add_slot = [&](const Byte* at) __attribute__((always_inline)) {
    Table<kWindow, kNibbles> table;
    (((I % R == 0 ? table.load(at + I / R * stride) : void()),
      acc[I] = dot<kWindow, kNibbles, kEven>(acc[I],
                                             in_order(table.find(load_vec(next + 2 * kVecBytes * (I % R)))),
                                             load_vec(next + 2 * kVecBytes * (I % R) + kVecBytes))),
     ...);
    next += R * 2 * kVecBytes;
  };
  if constexpr (kEven && kWindow < 32) {  // an even number of slots
    for (std::size_t s = 0; s < slots; s += 2, codes += 2 * step) {
      add_slot(codes);
      add_slot(codes + step);
    }
  } else {
    for (std::size_t s = 0; s < slots; ++s) add_slot(codes + (kEven ? s * step : places.column[s]));
  }
  (add_group(sums + I * 8 * kBlocks, set.scales + 8 * kBlocks * (I % R), scales[I / R],
             end<kNibbles, kEven>(acc[I])),
   ...);
}

template <int kWindow, bool kEven, bool kNibbles, int R>
SPARSIFY_INLINE void tiles(const Set* sets, std::size_t count, std::size_t slots, const Places& places,
                           const Rounded& x, std::size_t group, std::size_t first, std::size_t tokens) {
  constexpr std::size_t width = R * 8 * kBlocks;
  std::size_t t = 0;
#define SPARSIFY_TILE(T)                                                                              \
  for (; t + T <= tokens; t += T) {                                                                   \
    for (std::size_t s = 0; s < count; ++s) {                                                         \
      tile<kWindow, kEven, kNibbles, R>(Count<T * R>(), sets[s], slots, places,                       \
                                        x.codes_of(group, first + t), x.stride,                       \
                                        x.scales_of(group, first + t), sets[s].sums + t * width);     \
    }                                                                                                 \
  }
  if (kTile == 8) SPARSIFY_TILE(8)
  SPARSIFY_TILE(4)
  SPARSIFY_TILE(2)
  SPARSIFY_TILE(1)
#undef SPARSIFY_TILE
}

// One call: everything but the tokens and row blocks.
struct Call {
  const Layout& layout;
  const Byte* packed;
  const Rounded& x;
  const float* bias;
  float* y;
  Places places;
  Set sets[kSets];
};

// `count` sets of R vectors of row blocks from `block` on, `have` of whose blocks exist, for `tokens` tokens
// from `first` on.
template <int N, int M, bool kNibbles, int R>
void pass(const Call& call, std::size_t block, std::size_t count, std::size_t have, std::size_t first,
          std::size_t tokens) {
  using P = Pattern<N, M>;
  constexpr std::size_t blocks = R * kBlocks, width = kRows * blocks;
  const Layout& l = call.layout;
  const std::size_t groups = l.groups(), bytes = l.block_bytes / groups;
  for (std::size_t s = 0; s < count; ++s) {
    float* sums = call.sets[s].sums;
    for (std::size_t i = 0; i < tokens * width; i += 8) _mm256_storeu_ps(sums + i, _mm256_setzero_ps());
  }
  for (std::size_t g = 0; g < groups; ++g) {
    for (std::size_t b = 0; b < count * blocks; ++b) {
      const Set& set = call.sets[b / blocks];
      if (b < have) {
        const Byte* group = call.packed + (block + b) * l.block_bytes + g * bytes;
        // The next one: of the same block, or the first of the block so many blocks on.
        prefetch(group, bytes + (g + 1 < groups ? 0 : (count * blocks - 1) * l.block_bytes), bytes);
        unpack_block<N, M, kNibbles, R>(group, l.slots, call.places, set, b % blocks);
      } else {
        clear_block<R>(l.slots, set, b % blocks);
      }
    }
    tiles<P::kWindow, P::kEven, kNibbles, R>(call.sets, count, l.slots, call.places, call.x, g, first, tokens);
  }
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t b = 0; b < have; ++b) {
      const float* sums = call.sets[b / blocks].sums + t * width + kRows * (b % blocks);
      store_rows(l, block + b, _mm256_loadu_ps(sums), call.bias, call.y + (first + t) * l.out);
    }
  }
}
