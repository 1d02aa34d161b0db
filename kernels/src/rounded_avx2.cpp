// int8 and int4 products with AVX2, FMA and F16C.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16 bits. With int4 weights a code is the
// unsigned byte a + 128; 128 times the sum of the weights of a scale group, the same for all tokens, is taken
// off again. With int8 weights that would overflow, so it is |w| times +-a. Where a slot reaches eight columns
// (2:4, 4:8) such codes are stored as a0 .. a7, -a0 .. -a7 and bit 3 of an index is the sign of its weight, so
// that tokens share the work on signs; elsewhere vpsignb does it for each token.
#include "rounded.h"

#include <immintrin.h>

#define SPARSIFY_INLINE inline __attribute__((always_inline))

namespace sparsify {
namespace avx2 {
namespace {

SPARSIFY_INLINE __m256i merge(__m256i x, __m256i mask, __m256i bits) {
  return _mm256_or_si256(_mm256_and_si256(x, mask), bits);
}

constexpr int kNibbleFactor = 1;

SPARSIFY_INLINE __m256i low_nibbles(__m256i v) {
  return _mm256_sub_epi8(_mm256_and_si256(v, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
}

SPARSIFY_INLINE __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

// Keeps the compiler from reordering the steps of a loop until registers run out.
template <typename V>
SPARSIFY_INLINE V kept(V v) {
  __asm__ volatile("" : "+x"(v));
  return v;
}

#include "rounded_unpack.inl"

using Vec = __m256i;
constexpr std::size_t kBlocks = 1;  // row blocks of a vector
constexpr std::size_t kVecs = 2;    // vectors and tokens of a tile: their sums fill eight registers
constexpr int kTile = 4;
constexpr int kChains = 1;          // sums are added in one cycle

// Bytes of the code of one column.
constexpr std::size_t code_width(int window, bool nibbles) { return window == 8 && !nibbles ? 2 : 1; }

SPARSIFY_INLINE void store_bytes(Byte* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }

// Stores 32 codes.
SPARSIFY_INLINE void store_codes(Byte* to, std::size_t width, bool nibbles, __m256i codes) {
  if (nibbles) return store_bytes(to, _mm256_xor_si256(codes, every_byte(0x80)));
  if (width == 1) return store_bytes(to, codes);
  const __m256i negated = _mm256_sub_epi8(_mm256_setzero_si256(), codes);
  const __m256i a = _mm256_unpacklo_epi64(codes, negated), b = _mm256_unpackhi_epi64(codes, negated);
  store_bytes(to, _mm256_permute2x128_si256(a, b, 0x20));
  store_bytes(to + 32, _mm256_permute2x128_si256(a, b, 0x31));
}

SPARSIFY_INLINE __m256i load_vec(const Byte* p) { return load_bytes(p); }

SPARSIFY_INLINE __m256i broadcast16(const Byte* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

SPARSIFY_INLINE __m256i broadcast8(const Byte* p) {
  long long eight;
  __builtin_memcpy(&eight, p, 8);
  return _mm256_set1_epi64x(eight);
}

// The codes within reach of a slot.
template <int kWindow, bool kNibbles>
struct Table {
  __m256i codes;
  SPARSIFY_INLINE void load(const Byte* p) { codes = kWindow == 8 && kNibbles ? broadcast8(p) : broadcast16(p); }
  SPARSIFY_INLINE __m256i find(__m256i index) const { return _mm256_shuffle_epi8(codes, index); }
};

template <bool kNibbles>
struct Table<32, kNibbles> {
  __m256i lower, upper;
  SPARSIFY_INLINE void load(const Byte* p) {
    lower = broadcast16(p);
    upper = broadcast16(p + 16);
  }
  SPARSIFY_INLINE __m256i find(__m256i index) const {
    return _mm256_blend_epi16(_mm256_shuffle_epi8(lower, index), _mm256_shuffle_epi8(upper, index), 0xaa);
  }
};

// Moves the sign of int8 weights into the indices of a window of eight.
template <bool kNibbles>
SPARSIFY_INLINE void fold(__m256i& index, __m256i& weight) {
  if (kNibbles) return;
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi16(weight, 4), every_byte(8));
  index = _mm256_or_si256(index, sign);
  weight = _mm256_abs_epi8(weight);
}

// `excess` collects what the 128 of the codes adds to the sums of a row.
template <int kWindow, bool kNibbles, bool kShort>
SPARSIFY_INLINE void prepare(__m256i& index, __m256i& weight, __m256i& excess) {
  if (kNibbles) {
    const __m256i pairs = _mm256_maddubs_epi16(every_byte(0x80), weight);
    excess = kShort ? _mm256_add_epi16(excess, pairs)
                    : _mm256_add_epi32(excess, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  } else if (kWindow == 8) {
    fold<kNibbles>(index, weight);
  }
}

template <bool kShort>
SPARSIFY_INLINE __m256i minus(__m256i v) {
  return kShort ? _mm256_sub_epi16(_mm256_setzero_si256(), v) : _mm256_sub_epi32(_mm256_setzero_si256(), v);
}

template <bool kNibbles>
SPARSIFY_INLINE Vec begin(const Byte* start) {
  return kNibbles ? load_vec(start) : _mm256_setzero_si256();
}

// `kWide`: the sums are of 32 bits. Those of 16 hold sixteen int4 slots, 16 * 2 * 8 * 127 < 32768; on the way
// there they may wrap.
template <bool kWide>
SPARSIFY_INLINE Vec accumulate(Vec acc, Vec pairs) {
  if (kWide) pairs = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  if (kWide) __asm__ volatile("vpaddd %1, %0, %0" : "+x"(acc) : "x"(pairs));
  else __asm__ volatile("vpaddw %1, %0, %0" : "+x"(acc) : "x"(pairs));
  return acc;
}

template <int kWindow, bool kNibbles, bool kWide>
SPARSIFY_INLINE Vec dot(Vec acc, Vec codes, Vec weight) {
  if (kNibbles) return accumulate<kWide>(acc, _mm256_maddubs_epi16(codes, weight));
  if (kWindow == 8) return accumulate<kWide>(acc, _mm256_maddubs_epi16(weight, codes));
  return accumulate<kWide>(acc, _mm256_maddubs_epi16(_mm256_abs_epi8(weight), _mm256_sign_epi8(codes, weight)));
}

template <bool kWide>
SPARSIFY_INLINE Vec end(Vec acc) {
  return kWide ? acc : _mm256_madd_epi16(acc, _mm256_set1_epi16(1));
}

SPARSIFY_INLINE void add_group(float* sums, const float* weight_scales, float scale, Vec total) {
  const __m256 by = _mm256_mul_ps(_mm256_loadu_ps(weight_scales), _mm256_set1_ps(scale));
  _mm256_storeu_ps(sums, _mm256_fmadd_ps(by, _mm256_cvtepi32_ps(total), _mm256_loadu_ps(sums)));
}

// One row block: what the 128 of the codes adds to its sums, the same for all tokens. The sums of sixteen
// weights of four bits fit a byte.
template <bool kNibbles>
struct Excess {
  __m256i sum = _mm256_setzero_si256();
  SPARSIFY_INLINE void add(__m256i weight) {
    if (kNibbles) sum = _mm256_add_epi8(sum, weight);
  }
  SPARSIFY_INLINE void join(const Excess&) {}
  SPARSIFY_INLINE __m256i remove(__m256i acc) const {
    if (!kNibbles) return acc;
    return end<false>(_mm256_sub_epi16(acc, _mm256_maddubs_epi16(every_byte(0x80), sum)));
  }
};

template <bool kNibbles, bool kFolded>
SPARSIFY_INLINE __m256i row_dot(__m256i acc, __m256i table, __m256i index, __m256i weight) {
  return dot<kFolded ? 8 : 16, kNibbles, !kNibbles>(acc, kept(_mm256_shuffle_epi8(table, index)), weight);
}

template <int kWindow, bool kFolded>
SPARSIFY_INLINE __m256i row_table(const Byte* p) {
  return kWindow == 16 || kFolded ? broadcast16(p) : broadcast8(p);
}

#include "rounded_x86.inl"
#include "rounded_tile.inl"

}  // namespace

std::size_t code_bytes(const Layout& l) { return code_stride(l); }

void quantize(const Layout& l, const float* x, std::size_t first, std::size_t last, std::uint8_t* codes,
              float* scales) {
  round_tokens(l, x, first, last, codes, scales);
}

std::size_t work_bytes(const Layout&) { return kWorkBytes; }

void rounded(const Layout& l, const std::uint8_t* packed, const std::uint8_t* codes, const float* scales,
             std::size_t tokens, const float* bias, float* y, std::size_t first, std::size_t last,
             std::uint8_t* work) {
  choose(l)(l, packed, codes, scales, tokens, bias, y, first, last, work);
}

}  // namespace avx2
}  // namespace sparsify
