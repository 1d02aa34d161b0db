// int8 and int4 products with AMX tiles, for many tokens; AVX-512 with VNNI and VBMI2 for the rest.
//
// A scale group of four row blocks is expanded once to dense weights in the first cache, as the tiles read
// them. So the bytes that sparsity saves are saved on the way from memory, and the products are those of the
// dense weight: 16 rows and tokens and 64 columns an instruction.
#include "rounded.h"

#if defined(__GNUC__) && !defined(__clang__)  // GCC 12: the operand that an intrinsic ignores
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define SPARSIFY_INLINE inline __attribute__((always_inline))

namespace sparsify::amx {
namespace {

#include "rounded_avx512.inl"

#include "amx_tiles.inl"

constexpr std::size_t kSide = 16;       // tokens, rows and quads of a tile
constexpr std::size_t kTileBlocks = 2;   // row blocks of a tile
constexpr std::size_t kSetBlocks = 4;    // row blocks of a set: two tiles side by side
constexpr std::size_t kSetRows = kRows * kSetBlocks;
constexpr std::size_t kTokens = 128;     // at most in one pass over the weights
constexpr std::size_t kMostQuads = 32;   // of a scale group of 128 columns
constexpr std::size_t kQuadBytes = 4 * kSide;
constexpr std::size_t kAhead = 4096;  // bytes between a weight's use and its prefetch

// Tokens from which on tiles are quicker, measured: sparser weights save more of the products than tiles do.
constexpr std::size_t fewest(int window) { return window == 8 ? 8 : 64; }

// One expanded scale group of a set, what its sums begin with, and the sums of all groups.
struct Set {
  alignas(64) Byte weights[2][kMostQuads][kQuadBytes];    // of each tile: [k / 4][row][k % 4]
  alignas(64) std::int32_t starts[kSetRows];              // -128 times the sums of the weights
  alignas(64) float scales[kSetRows];
  alignas(64) std::int32_t products[2][2][kSide][kSide];  // [tile of tokens][tile of rows][token][row]
  alignas(64) float sums[kTokens][kSetRows];
};

// Columns of one step of a tile's product: a scale group, or half of a long one.
SPARSIFY_INLINE std::size_t step_columns(const Layout& l) { return l.group <= 64 ? l.group : l.group / 2; }

SPARSIFY_INLINE TileConfig config_of(const Layout& l) {
  TileConfig config{};
  config.palette = 1;
  const std::size_t step = step_columns(l);
  for (int tile = 0; tile < 8; ++tile) {
    const bool codes = tile == 4 || tile == 5, weights = tile > 5;
    config.row_bytes[tile] = static_cast<std::uint16_t>(codes ? step : kQuadBytes);
    config.rows[tile] = static_cast<std::uint8_t>(weights ? step / 4 : kSide);
  }
  return config;
}

// The entries of eight columns that a slot holds for each row, side by side.
template <int kEntries>
SPARSIFY_INLINE __m512i entries(__m256i weight, int part) {
  if (kEntries == 4) return _mm512_castsi256_si512(weight);
  const __m256i moved = _mm256_srl_epi32(weight, _mm_cvtsi32_si128(8 * kEntries * part));
  const __m128i some = kEntries == 2 ? _mm256_cvtepi32_epi16(moved) : _mm256_cvtepi32_epi8(moved);
  return _mm512_castsi128_si512(some);
}

// Ones at the columns of those entries, eight bits a row: each entry sets a bit of its own.
template <int kEntries>
SPARSIFY_INLINE __mmask64 columns(__m256i bits, int part) {
  constexpr int ones = kEntries == 4 ? 0x01010101 : kEntries == 2 ? 0x0101 : 1;
  const __m256i count = _mm256_set1_epi32(static_cast<int>(static_cast<unsigned>(ones) << (8 * kEntries * part)));
  const __m256i rows = _mm256_dpbusd_epi32(_mm256_setzero_si256(), bits, count);
  return static_cast<__mmask64>(_mm_cvtsi128_si64(_mm256_cvtepi32_epi8(rows)));
}

// Expands one scale group of row block `b` of a set, and begins its sums.
template <int N, int M, bool kNibbles>
SPARSIFY_INLINE void expand_block(const Byte* group, std::size_t slots, std::size_t b, Set& set) {
  using P = Pattern<N, M>;
  constexpr int kParts = P::kWindow / 8, kEntries = 4 / kParts;
  const Parts parts = parts_of<M>(group, slots);
  Byte* to = set.weights[b / kTileBlocks][0] + b % kTileBlocks * 32;
  const __m256i powers = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  const __m512i halves = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  __m256i excess = _mm256_setzero_si256();
  for (std::size_t c = 0; 4 * c < slots; ++c) {
    const Indices<N, M> indices(parts, c, c % 2 != 0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (4 * c + static_cast<std::size_t>(i) >= slots) break;
      const __m256i weight = weights<kNibbles>(parts, c, i);
      const __m256i bits = _mm256_shuffle_epi8(powers, indices.slot(i));
      excess = _mm256_dpbusd_epi32(excess, every_byte(0x80), weight);
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part, to += 2 * kQuadBytes) {
        const __m512i dense =
            _mm512_maskz_expand_epi8(columns<kEntries>(bits, part), entries<kEntries>(weight, part));
        const __m512i quads = _mm512_permutexvar_epi32(halves, dense);
        store_bytes(to, _mm512_castsi512_si256(quads));
        store_bytes(to + kQuadBytes, _mm512_extracti64x4_epi64(quads, 1));
      }
    }
  }
  store_bytes(reinterpret_cast<Byte*>(set.starts + kRows * b), _mm256_sub_epi32(_mm256_setzero_si256(), excess));
  _mm256_store_ps(set.scales + kRows * b, load_scales<kNibbles>(parts.scales));
}

// A row block that does not exist, beside the last one.
inline void clear_block(const Layout& l, std::size_t b, Set& set) {
  Byte* to = set.weights[b / kTileBlocks][0] + b % kTileBlocks * 32;
  for (std::size_t q = 0; q < l.group / 4; ++q) store_bytes(to + q * kQuadBytes, _mm256_setzero_si256());
  store_bytes(reinterpret_cast<Byte*>(set.starts + kRows * b), _mm256_setzero_si256());
  _mm256_store_ps(set.scales + kRows * b, _mm256_setzero_ps());
}

// Products of 16 or 32 tokens with the 32 rows of a set, over one scale group.
template <bool kTwo>
SPARSIFY_INLINE void multiply(const Layout& l, Set& set, const Byte* codes, std::size_t stride) {
  SPARSIFY_TILE_LOAD(0, set.starts, 0);
  SPARSIFY_TILE_LOAD(1, set.starts + kSide, 0);
  if (kTwo) {
    SPARSIFY_TILE_LOAD(2, set.starts, 0);
    SPARSIFY_TILE_LOAD(3, set.starts + kSide, 0);
  }
  const std::size_t step = step_columns(l);
  for (std::size_t k = 0; k < l.group; k += step) {
    SPARSIFY_TILE_LOAD(4, codes + k, stride);
    SPARSIFY_TILE_LOAD(6, set.weights[0][k / 4], kQuadBytes);
    SPARSIFY_TILE_LOAD(7, set.weights[1][k / 4], kQuadBytes);
    SPARSIFY_TILE_DOT(0, 4, 6);
    SPARSIFY_TILE_DOT(1, 4, 7);
    if (kTwo) {
      SPARSIFY_TILE_LOAD(5, codes + k + kSide * stride, stride);
      SPARSIFY_TILE_DOT(2, 5, 6);
      SPARSIFY_TILE_DOT(3, 5, 7);
    }
  }
  constexpr std::size_t row = kSide * sizeof(std::int32_t);
  SPARSIFY_TILE_STORE(0, set.products[0][0], row);
  SPARSIFY_TILE_STORE(1, set.products[0][1], row);
  if (kTwo) {
    SPARSIFY_TILE_STORE(2, set.products[1][0], row);
    SPARSIFY_TILE_STORE(3, set.products[1][1], row);
  }
}

// Adds the products of `tokens` tokens, 32 at most, to their sums.
SPARSIFY_INLINE void add_products(const Set& set, const float* scales, std::size_t tokens,
                                  float (*sums)[kSetRows]) {
  const __m512 rows[2] = {_mm512_load_ps(set.scales), _mm512_load_ps(set.scales + kSide)};
  for (std::size_t t = 0; t < tokens; ++t) {
    const __m512 scale = _mm512_set1_ps(scales[t]);
#pragma GCC unroll 2
    for (std::size_t r = 0; r < 2; ++r) {
      const __m512 product = _mm512_cvtepi32_ps(_mm512_load_si512(set.products[t / kSide][r][t % kSide]));
      float* sum = sums[t] + r * kSide;
      _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_mul_ps(rows[r], scale), product, _mm512_load_ps(sum)));
    }
  }
}

// One set of row blocks from `block` on, `have` of which exist, for `tokens` tokens from `first` on.
template <int N, int M, bool kNibbles>
void set_of_blocks(const Layout& l, const Byte* packed, const Rounded& x, const float* bias, float* y,
                   std::size_t block, std::size_t have, std::size_t first, std::size_t tokens, Set& set) {
  const std::size_t groups = l.groups(), bytes = l.block_bytes / groups;
  for (std::size_t t = 0; t < tokens; ++t) {
    _mm512_store_ps(set.sums[t], _mm512_setzero_ps());
    _mm512_store_ps(set.sums[t] + kSide, _mm512_setzero_ps());
  }
  for (std::size_t b = have; b < kSetBlocks; ++b) clear_block(l, b, set);
  for (std::size_t g = 0; g < groups; ++g) {
    for (std::size_t b = 0; b < have; ++b) {
      const Byte* group = packed + (block + b) * l.block_bytes + g * bytes;
      prefetch_far(group, kAhead, bytes);
      expand_block<N, M, kNibbles>(group, l.slots, b, set);
    }
    for (std::size_t t = 0; t < tokens; t += 2 * kSide) {
      const std::size_t left = tokens - t;
      const Byte* codes = x.codes_of(g, first + t);
      left > kSide ? multiply<true>(l, set, codes, x.stride) : multiply<false>(l, set, codes, x.stride);
      add_products(set, x.scales_of(g, first + t), left < 2 * kSide ? left : 2 * kSide, set.sums + t);
    }
  }
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t b = 0; b < have; ++b) {
      store_rows(l, block + b, _mm256_load_ps(set.sums[t] + kRows * b), bias, y + (first + t) * l.out);
    }
  }
}

template <int N, int M, bool kNibbles>
void many_tokens(const Layout& l, const Byte* packed, const Rounded& x, const float* bias, float* y,
                 std::size_t first, std::size_t last, Set& set) {
  const Configured configured(config_of(l));
  // Passes of about the same size.
  const std::size_t passes = (x.tokens + kTokens - 1) / kTokens;
  const std::size_t most = ((x.tokens + passes - 1) / passes + kSide - 1) / kSide * kSide;
  for (std::size_t t = 0; t < x.tokens; t += most) {
    const std::size_t some = x.tokens - t < most ? x.tokens - t : most;
    for (std::size_t block = first; block < last; block += kSetBlocks) {
      const std::size_t have = last - block < kSetBlocks ? last - block : kSetBlocks;
      set_of_blocks<N, M, kNibbles>(l, packed, x, bias, y, block, have, t, some, set);
    }
  }
}

using Product = decltype(&many_tokens<2, 4, true>);

// Null for patterns whose slots begin within a group.
template <bool kNibbles>
inline Product choose_pattern(const Layout& l) {
  if (l.m == 4) return l.n == 1 ? many_tokens<1, 4, kNibbles> : many_tokens<2, 4, kNibbles>;
  switch (l.n) {
    case 1: return many_tokens<1, 8, kNibbles>;
    case 2: return many_tokens<2, 8, kNibbles>;
    case 4: return many_tokens<4, 8, kNibbles>;
    default: return nullptr;
  }
}

}  // namespace

// A last tile of tokens reads codes of some that do not exist.
std::size_t code_bytes(const Layout& l, std::size_t tokens) {
  return avx512::code_bytes(l, tokens) + kSide * code_stride(l);
}

void quantize(const Layout& l, const float* x, std::size_t tokens, std::size_t first, std::size_t last,
              std::uint8_t* codes, float* scales) {
  avx512::quantize(l, x, tokens, first, last, codes, scales);
}

std::size_t work_bytes(const Layout& l) {
  const std::size_t others = avx512::work_bytes(l), own = sizeof(Set) + alignof(Set);
  return others > own ? others : own;
}

void rounded(const Layout& l, const std::uint8_t* packed, const std::uint8_t* codes, const float* scales,
             std::size_t tokens, const float* bias, float* y, std::size_t first, std::size_t last,
             std::uint8_t* work) {
  const Product product = l.values == Values::int4 ? choose_pattern<true>(l) : choose_pattern<false>(l);
  if (product == nullptr || tokens < fewest(window_of(l))) {
    return avx512::rounded(l, packed, codes, scales, tokens, bias, y, first, last, work);
  }
  const std::size_t skip = (alignof(Set) - reinterpret_cast<std::uintptr_t>(work) % alignof(Set)) % alignof(Set);
  product(l, packed, {codes, scales, tokens, code_stride(l)}, bias, y, first, last,
          *reinterpret_cast<Set*>(work + skip));
}

}  // namespace sparsify::amx
