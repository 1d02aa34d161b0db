// int8 and int4 products with AVX2, FMA and F16C.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16 bits. With int4 weights a code is the
// unsigned byte a + 128; 128 times the sum of the weights of a scale group, the same for all tokens, is
// taken off again. With int8 weights that would overflow, so it is |w| times +-a. Where a slot reaches eight
// columns (2:4, 4:8) such codes are stored as a0 .. a7, -a0 .. -a7 and bit 3 of an index is the sign of its
// weight, so that tokens share the work on signs; elsewhere vpsignb does it for each token.
#include "rounded.h"

#include <immintrin.h>

#define SPARSIFY_INLINE inline __attribute__((always_inline))

namespace sparsify::avx2 {
namespace {

SPARSIFY_INLINE __m256i merge(__m256i x, __m256i mask, __m256i bits) {
  return _mm256_or_si256(_mm256_and_si256(x, mask), bits);
}

constexpr int kNibbleFactor = 1;
SPARSIFY_INLINE __m256i low_nibbles(__m256i v) {
  return _mm256_sub_epi8(_mm256_and_si256(v, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
}
SPARSIFY_INLINE __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

// Steps marked so stay in the order they are written in: left alone, the compiler reorders a tile until it
// runs out of registers.
SPARSIFY_INLINE __m256i in_order(__m256i v) {
  __asm__ volatile("" : "+x"(v));
  return v;
}

#include "rounded_unpack.inl"

constexpr std::size_t code_width(int window, bool nibbles) { return window == 8 && !nibbles ? 2 : 1; }

SPARSIFY_INLINE void store_bytes(Byte* p, __m256i v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}

SPARSIFY_INLINE void store_codes(Byte* to, int window, bool nibbles, __m256i codes) {
  if (nibbles) return store_bytes(to, _mm256_xor_si256(codes, every_byte(0x80)));
  if (window != 8) return store_bytes(to, codes);
  const __m256i negated = _mm256_sub_epi8(_mm256_setzero_si256(), codes);
  const __m256i a = _mm256_unpacklo_epi64(codes, negated), b = _mm256_unpackhi_epi64(codes, negated);
  store_bytes(to, _mm256_permute2x128_si256(a, b, 0x20));
  store_bytes(to + 32, _mm256_permute2x128_si256(a, b, 0x31));
}

#include "rounded_codes.inl"

SPARSIFY_INLINE __m256i broadcast16(const Byte* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
SPARSIFY_INLINE __m256i broadcast8(const Byte* p) {
  long long eight;
  __builtin_memcpy(&eight, p, 8);
  return _mm256_set1_epi64x(eight);
}

// Moves the sign of int8 weights into the indices of a window of eight.
template <bool kNibbles>
SPARSIFY_INLINE void fold(__m256i& index, __m256i& weight) {
  if (kNibbles) return;
  index = _mm256_or_si256(index, _mm256_and_si256(_mm256_srli_epi16(weight, 4), every_byte(8)));
  weight = _mm256_abs_epi8(weight);
}

// Sums of products of pairs have 16 bits while sixteen int4 slots are added (16 * 2 * 8 * 127 < 32768; they
// may wrap on the way there), which is all slots of an even pattern; else 32 bits.
template <bool kNibbles, bool kEven>
SPARSIFY_INLINE __m256i accumulate(__m256i sum, __m256i pairs) {
  if constexpr (kNibbles && kEven) {
    __asm__ volatile("vpaddw %1, %0, %0" : "+x"(sum) : "x"(pairs));  // in order, see above
  } else {
    __asm__ volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
  }
  return sum;
}

template <int kWindow, bool kNibbles, bool kEven>
SPARSIFY_INLINE __m256i dot(__m256i sum, __m256i codes, __m256i weight) {
  if (kNibbles) return accumulate<kNibbles, kEven>(sum, _mm256_maddubs_epi16(codes, weight));
  if (kWindow == 8) return accumulate<kNibbles, kEven>(sum, _mm256_maddubs_epi16(weight, codes));
  const __m256i signs_moved = _mm256_sign_epi8(codes, weight);
  return accumulate<kNibbles, kEven>(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(weight), signs_moved));
}

template <bool kNibbles, bool kEven>
SPARSIFY_INLINE __m256i end(__m256i sum) {
  return kNibbles && kEven ? _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) : sum;
}

// Few tokens.

constexpr int kChains = 1;  // an addition takes one cycle

// What the 128 of the codes adds to the sums of a row block. The sums of sixteen int4 weights fit a byte.
template <bool kNibbles>
struct Excess {
  __m256i sum = _mm256_setzero_si256();
  SPARSIFY_INLINE void add(__m256i weight) {
    if (kNibbles) sum = _mm256_add_epi8(sum, weight);
  }
  SPARSIFY_INLINE void join(const Excess&) {}
  SPARSIFY_INLINE __m256i remove(__m256i total) const {
    if (!kNibbles) return total;
    return end<true, true>(_mm256_sub_epi16(total, _mm256_maddubs_epi16(every_byte(0x80), sum)));
  }
};

template <int kWindow, bool kFolded>
SPARSIFY_INLINE __m256i row_table(const Byte* p) {
  return kWindow == 16 || kFolded ? broadcast16(p) : broadcast8(p);
}

template <bool kNibbles, bool kFolded>
SPARSIFY_INLINE __m256i row_dot(__m256i sum, __m256i table, __m256i index, __m256i weight) {
  return dot<kFolded ? 8 : 16, kNibbles, true>(sum, in_order(_mm256_shuffle_epi8(table, index)), weight);
}

#include "rounded_few.inl"

// Many tokens.

using Vec = __m256i;
constexpr std::size_t kBlocks = 1;  // row blocks of a vector
constexpr std::size_t kVecs = 2;    // vectors and tokens of a tile: their sums fill eight of the registers
constexpr std::size_t kTile = 4;

SPARSIFY_INLINE Vec load_vec(const Byte* p) { return load_bytes(p); }

// The codes within reach of a slot.
template <int kWindow, bool kNibbles>
struct Table {
  Vec codes;
  SPARSIFY_INLINE void load(const Byte* p) {
    codes = kWindow == 8 && kNibbles ? broadcast8(p) : broadcast16(p);
  }
  SPARSIFY_INLINE Vec find(Vec index) const { return _mm256_shuffle_epi8(codes, index); }
};
template <bool kNibbles>
struct Table<32, kNibbles> {
  Vec lower, upper;
  SPARSIFY_INLINE void load(const Byte* p) {
    lower = broadcast16(p);
    upper = broadcast16(p + 16);
  }
  SPARSIFY_INLINE Vec find(Vec index) const {
    return _mm256_blend_epi16(_mm256_shuffle_epi8(lower, index), _mm256_shuffle_epi8(upper, index), 0xaa);
  }
};

// The last step of unpacking; `excess` collects what the 128 of the codes adds to the sums.
template <int kWindow, bool kNibbles, bool kEven>
SPARSIFY_INLINE void prepare(__m256i& index, __m256i& weight, __m256i& excess) {
  if (kWindow == 8) fold<kNibbles>(index, weight);
  if (!kNibbles) return;
  const __m256i pairs = _mm256_maddubs_epi16(every_byte(0x80), weight);
  excess = kEven ? _mm256_add_epi16(excess, pairs)
                 : _mm256_add_epi32(excess, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

template <bool kNibbles, bool kEven>
SPARSIFY_INLINE __m256i negative(__m256i v) {
  const __m256i zero = _mm256_setzero_si256();
  return kNibbles && kEven ? _mm256_sub_epi16(zero, v) : _mm256_sub_epi32(zero, v);
}

template <bool kNibbles>
SPARSIFY_INLINE Vec begin(const Byte* start) {
  return kNibbles ? load_vec(start) : _mm256_setzero_si256();
}

SPARSIFY_INLINE void add_group(float* sums, const float* row_scales, float scale, Vec total) {
  const __m256 by = _mm256_mul_ps(_mm256_loadu_ps(row_scales), _mm256_set1_ps(scale));
  _mm256_storeu_ps(sums, _mm256_fmadd_ps(by, _mm256_cvtepi32_ps(total), _mm256_loadu_ps(sums)));
}

#include "rounded_tile.inl"

#include "rounded_product.inl"

}  // namespace

#include "rounded_exports.inl"

}  // namespace sparsify::avx2
