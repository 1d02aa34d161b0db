// int8 and int4 products with AVX-512 (F, BW, VL, DQ) and VNNI.
//
// A code is the unsigned byte a + 128, for vpdpbusd with signed weights; 128 times the sum of the weights of a
// scale group, the same for all tokens, is taken off again. Weights of four bits are used sixteen times as
// large: that is how they come out of their byte without a subtraction.
#include "rounded.h"

#if defined(__GNUC__) && !defined(__clang__)  // GCC 12: the operand that an intrinsic ignores
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define SPARSIFY_INLINE inline __attribute__((always_inline))

namespace sparsify {
namespace avx512 {
namespace {

SPARSIFY_INLINE __m256i merge(__m256i x, __m256i mask, __m256i bits) {
  return _mm256_ternarylogic_epi64(x, mask, bits, 0xea);
}

constexpr int kNibbleFactor = 16;

SPARSIFY_INLINE __m256i high_nibbles(__m256i v) {  // (v ^ 0x88) & 0xf0
  return _mm256_ternarylogic_epi64(v, _mm256_set1_epi8(static_cast<char>(0x88)),
                                   _mm256_set1_epi8(static_cast<char>(0xf0)), 0x28);
}

SPARSIFY_INLINE __m256i low_nibbles(__m256i v) { return high_nibbles(_mm256_slli_epi16(v, 4)); }

// Keeps the compiler from loading a vector twice.
SPARSIFY_INLINE __m256i kept(__m256i v) {
  __asm__ volatile("" : "+v"(v));
  return v;
}
SPARSIFY_INLINE __m512i kept(__m512i v) { return v; }

#include "rounded_unpack.inl"

using Vec = __m512i;
constexpr std::size_t kBlocks = 2;  // row blocks of a vector
constexpr std::size_t kVecs = 2;    // vectors and tokens of a tile: their sums fill sixteen registers
constexpr int kTile = 8;
constexpr int kChains = 2;          // vpdpbusd takes four cycles

// Bytes of the code of one column.
constexpr std::size_t code_width(int, bool) { return 1; }

SPARSIFY_INLINE void store_bytes(Byte* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }

// Stores 32 codes.
SPARSIFY_INLINE void store_codes(Byte* to, std::size_t, bool, __m256i codes) {
  store_bytes(to, _mm256_xor_si256(codes, every_byte(0x80)));
}

SPARSIFY_INLINE __m512i load_vec(const Byte* p) { return _mm512_loadu_si512(p); }

SPARSIFY_INLINE __m512i broadcast16(const Byte* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

SPARSIFY_INLINE long long load_eight(const Byte* p) {
  long long eight;
  __builtin_memcpy(&eight, p, 8);
  return eight;
}

// The codes within reach of a slot.
template <int kWindow, bool>
struct Table {
  __m512i codes;
  SPARSIFY_INLINE void load(const Byte* p) { codes = kWindow == 8 ? _mm512_set1_epi64(load_eight(p)) : broadcast16(p); }
  SPARSIFY_INLINE __m512i find(__m512i index) const { return _mm512_shuffle_epi8(codes, index); }
};

template <bool kNibbles>
struct Table<32, kNibbles> {
  __m512i lower, upper;
  SPARSIFY_INLINE void load(const Byte* p) {
    lower = broadcast16(p);
    upper = broadcast16(p + 16);
  }
  SPARSIFY_INLINE __m512i find(__m512i index) const {
    const __m512i found = _mm512_shuffle_epi8(lower, index);
    return _mm512_mask_shuffle_epi8(found, 0xccccccccccccccccull, upper, index);
  }
};

// `excess` collects what the 128 of the codes adds to the sums of a row.
template <int, bool, bool>
SPARSIFY_INLINE void prepare(__m256i&, __m256i& weight, __m256i& excess) {
  excess = _mm256_dpbusd_epi32(excess, every_byte(0x80), weight);
}

template <bool>
SPARSIFY_INLINE Vec begin(const Byte* start) { return load_vec(start); }

template <int, bool, bool>
SPARSIFY_INLINE Vec dot(Vec acc, Vec codes, Vec weight) {
  return _mm512_dpbusd_epi32(acc, codes, weight);
}

template <bool>
SPARSIFY_INLINE Vec end(Vec acc) {
  return acc;
}

SPARSIFY_INLINE void add_group(float* sums, const float* weight_scales, float scale, Vec total) {
  const __m512 by = _mm512_mul_ps(_mm512_loadu_ps(weight_scales), _mm512_set1_ps(scale));
  _mm512_storeu_ps(sums, _mm512_fmadd_ps(by, _mm512_cvtepi32_ps(total), _mm512_loadu_ps(sums)));
}

// One row block: what the 128 of the codes adds to its sums, the same for all tokens.
template <bool>
struct Excess {
  __m256i sum = _mm256_setzero_si256();
  SPARSIFY_INLINE void add(__m256i weight) { sum = _mm256_dpbusd_epi32(sum, every_byte(0x80), weight); }
  SPARSIFY_INLINE void join(const Excess& other) { sum = _mm256_add_epi32(sum, other.sum); }
  SPARSIFY_INLINE __m256i remove(__m256i acc) const { return _mm256_sub_epi32(acc, sum); }
};

template <bool>
SPARSIFY_INLINE __m256i minus(__m256i v) {
  return _mm256_sub_epi32(_mm256_setzero_si256(), v);
}

template <bool>
SPARSIFY_INLINE void fold(__m256i&, __m256i&) {}

template <bool, bool>
SPARSIFY_INLINE __m256i row_dot(__m256i acc, __m256i table, __m256i index, __m256i weight) {
  return _mm256_dpbusd_epi32(acc, _mm256_shuffle_epi8(table, index), weight);
}

template <int kWindow, bool>
SPARSIFY_INLINE __m256i row_table(const Byte* p) {
  if (kWindow == 16) return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_set1_epi64x(load_eight(p));
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

}  // namespace avx512
}  // namespace sparsify
