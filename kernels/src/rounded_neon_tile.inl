// Many tokens: a scale group of two row blocks is unpacked once, to memory that stays in the first-level
// cache, and used by tiles of four tokens. Included into rounded_neon.cpp.

constexpr std::size_t kBlocks = 2;  // of a tile: with four tokens their sums fill sixteen registers
constexpr std::size_t kTile = 4;
constexpr std::size_t kTokens = 64;  // of one pass over the weights: their codes of a group stay there too
// From so many tokens on: unpacking a block for every four of them costs more than writing it to memory once.
// Reckoned from the instructions of both ways, not measured.
constexpr std::size_t kManyTokens = 7;

constexpr std::size_t kSlotBytes = 64;  // indices and weights of one row block
constexpr std::size_t kSlotsBytes = kMaxSlots * kBlocks * kSlotBytes;
constexpr std::size_t kScalesBytes = kBlocks * kRows * sizeof(float);
constexpr std::size_t kWorkBytes = 64 + kSlotsBytes + kScalesBytes + kTokens * kScalesBytes;

// An unpacked scale group of R row blocks, and the sums of a pass.
struct Scratch {
  Byte* slots;     // [slots][R][kSlotBytes]
  float* scales;   // [R][kRows]
  float* sums;     // [kTokens][R][kRows]

  explicit Scratch(Byte* work) {
    slots = work + (64 - reinterpret_cast<std::uintptr_t>(work) % 64) % 64;
    scales = reinterpret_cast<float*>(slots + kSlotsBytes);
    sums = scales + kBlocks * kRows;
  }
};

template <int M, bool kNibbles, std::size_t R>
inline void unpack(const Product& p, std::size_t block, std::size_t g, const Scratch& scratch) {
  for (std::size_t r = 0; r < R; ++r) {
    const Byte* group = p.group(block + r, g);
    Byte* to = scratch.slots + r * kSlotBytes;
    each_slot<M, kNibbles>(group, p.l.slots, p.places, [&](std::size_t s, const Slot& slot) {
      store_pair(to + s * R * kSlotBytes, slot.index);
      store_pair(to + s * R * kSlotBytes + 32, slot.weight);
    });
    store_floats(scratch.scales + r * kRows, load_scales(group));
  }
}

// Adds one scale group to the sums of T tokens from `token` on and R row blocks.
template <bool kNibbles, bool kWide, std::size_t R, std::size_t T>
void tile(const Product& p, std::size_t token, std::size_t g, const Scratch& scratch, float* sums) {
  Sums exact[T][R];
SPARSIFY_UNROLL
  for (std::size_t i = 0; i < T * R; ++i) exact[i / R][i % R] = {vdupq_n_s32(0), vdupq_n_s32(0)};
  const Byte* codes = p.codes_of(token, g);
  const Byte* from = scratch.slots;
  for (std::size_t s = 0; s < p.l.slots; ++s, from += R * kSlotBytes) {
    const Byte* at = codes + p.places.column[s];
SPARSIFY_UNROLL
    for (std::size_t r = 0; r < R; ++r) {
      const Slot slot = {load_pair(from + r * kSlotBytes), load_pair(from + r * kSlotBytes + 32)};
SPARSIFY_UNROLL
      for (std::size_t t = 0; t < T; ++t) add_slot(exact[t][r], Table<kWide>(at + t * p.l.group), slot);
    }
  }
SPARSIFY_UNROLL
  for (std::size_t t = 0; t < T; ++t) {
SPARSIFY_UNROLL
    for (std::size_t r = 0; r < R; ++r) {
      float* to = sums + (t * R + r) * kRows;
      Floats sum = load_floats(to);
      add_group<kNibbles>(sum, exact[t][r], load_floats(scratch.scales + r * kRows),
                          p.scale_of(token + t, g));
      store_floats(to, sum);
    }
  }
}

// R row blocks from `block` on, `count` tokens from `token` on.
template <int M, bool kNibbles, bool kWide, std::size_t R>
void pass(const Product& p, std::size_t block, std::size_t token, std::size_t count, const Scratch& scratch) {
  constexpr std::size_t width = R * kRows;
  for (std::size_t i = 0; i < count * width; i += 4) vst1q_f32(scratch.sums + i, vdupq_n_f32(0.0f));
  for (std::size_t g = 0; g < p.groups; ++g) {
    unpack<M, kNibbles, R>(p, block, g, scratch);
    std::size_t t = 0;
    for (; t + kTile <= count; t += kTile)
      tile<kNibbles, kWide, R, kTile>(p, token + t, g, scratch, scratch.sums + t * width);
    if (count - t >= 2) {
      tile<kNibbles, kWide, R, 2>(p, token + t, g, scratch, scratch.sums + t * width);
      t += 2;
    }
    if (t < count) tile<kNibbles, kWide, R, 1>(p, token + t, g, scratch, scratch.sums + t * width);
  }
  for (std::size_t t = 0; t < count; ++t) {
    for (std::size_t r = 0; r < R; ++r)
      p.store(token + t, block + r, load_floats(scratch.sums + t * width + r * kRows));
  }
}

// Row blocks [first, last) for all tokens.
template <int M, bool kNibbles, bool kWide>
void run(const Product& p, std::size_t first, std::size_t last, Byte* work) {
  if (p.tokens < kManyTokens) return few<M, kNibbles, kWide>(p, first, last);
  const Scratch scratch(work);
  for (std::size_t t = 0; t < p.tokens; t += kTokens) {
    const std::size_t count = p.tokens - t < kTokens ? p.tokens - t : kTokens;
    std::size_t block = first;
    for (; block + kBlocks <= last; block += kBlocks)
      pass<M, kNibbles, kWide, kBlocks>(p, block, t, count, scratch);
    for (; block < last; ++block) pass<M, kNibbles, kWide, 1>(p, block, t, count, scratch);
  }
}

template <bool kNibbles>
void run_pattern(const Product& p, std::size_t first, std::size_t last, Byte* work) {
  if (p.l.m == 4) return run<4, kNibbles, false>(p, first, last, work);
  if (p.l.n == 1) return run<8, kNibbles, true>(p, first, last, work);
  run<8, kNibbles, false>(p, first, last, work);
}
