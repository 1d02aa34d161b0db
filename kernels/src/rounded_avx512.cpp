// int8 and int4 products with AVX-512 (F, BW, VL, DQ) and VNNI.
//
// A code is the unsigned byte a + 128, for vpdpbusd with signed weights; 128 times the sum of the weights of
// a scale group, the same for all tokens, is taken off again. Weights of four bits are used sixteen times as
// large: that is how they come out of their byte without a subtraction.
#include "rounded.h"

#if defined(__GNUC__) && !defined(__clang__)  // GCC 12: the operand that an intrinsic ignores
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define SPARSIFY_INLINE inline __attribute__((always_inline))

namespace sparsify::avx512 {
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

// Keeps the compiler from loading a vector twice. There are registers enough for any order of a tile.
SPARSIFY_INLINE __m256i in_order(__m256i v) {
  __asm__ volatile("" : "+v"(v));
  return v;
}
SPARSIFY_INLINE __m512i in_order(__m512i v) { return v; }

#include "rounded_unpack.inl"

constexpr std::size_t code_width(int, bool) { return 1; }

SPARSIFY_INLINE void store_bytes(Byte* p, __m256i v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}

SPARSIFY_INLINE void store_codes(Byte* to, int, bool, __m256i codes) {
  store_bytes(to, _mm256_xor_si256(codes, every_byte(0x80)));
}

#include "rounded_codes.inl"

SPARSIFY_INLINE long long load_eight(const Byte* p) {
  long long eight;
  __builtin_memcpy(&eight, p, 8);
  return eight;
}
SPARSIFY_INLINE __m128i load_sixteen(const Byte* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

// Few tokens.

constexpr int kChains = 2;  // vpdpbusd takes four cycles

// What the 128 of the codes adds to the sums of a row block.
template <bool>
struct Excess {
  __m256i sum = _mm256_setzero_si256();
  SPARSIFY_INLINE void add(__m256i weight) { sum = _mm256_dpbusd_epi32(sum, every_byte(0x80), weight); }
  SPARSIFY_INLINE void join(const Excess& other) { sum = _mm256_add_epi32(sum, other.sum); }
  SPARSIFY_INLINE __m256i remove(__m256i total) const { return _mm256_sub_epi32(total, sum); }
};

template <bool>
SPARSIFY_INLINE void fold(__m256i&, __m256i&) {}

template <int kWindow, bool>
SPARSIFY_INLINE __m256i row_table(const Byte* p) {
  return kWindow == 16 ? _mm256_broadcastsi128_si256(load_sixteen(p)) : _mm256_set1_epi64x(load_eight(p));
}

template <bool, bool>
SPARSIFY_INLINE __m256i row_dot(__m256i sum, __m256i table, __m256i index, __m256i weight) {
  return _mm256_dpbusd_epi32(sum, _mm256_shuffle_epi8(table, index), weight);
}

#include "rounded_few.inl"

// Many tokens.

using Vec = __m512i;
constexpr std::size_t kBlocks = 2;  // row blocks of a vector
constexpr std::size_t kVecs = 2;    // vectors and tokens of a tile: their sums fill sixteen of the registers
constexpr std::size_t kTile = 8;

SPARSIFY_INLINE Vec load_vec(const Byte* p) { return _mm512_loadu_si512(p); }

// The codes within reach of a slot.
template <int kWindow, bool>
struct Table {
  Vec codes;
  SPARSIFY_INLINE void load(const Byte* p) {
    codes = kWindow == 8 ? _mm512_set1_epi64(load_eight(p)) : _mm512_broadcast_i32x4(load_sixteen(p));
  }
  SPARSIFY_INLINE Vec find(Vec index) const { return _mm512_shuffle_epi8(codes, index); }
};
template <bool kNibbles>
struct Table<32, kNibbles> {
  Vec lower, upper;
  SPARSIFY_INLINE void load(const Byte* p) {
    lower = _mm512_broadcast_i32x4(load_sixteen(p));
    upper = _mm512_broadcast_i32x4(load_sixteen(p + 16));
  }
  SPARSIFY_INLINE Vec find(Vec index) const {
    return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(lower, index), 0xccccccccccccccccull, upper, index);
  }
};

// The last step of unpacking; `excess` collects what the 128 of the codes adds to the sums.
template <int, bool, bool>
SPARSIFY_INLINE void prepare(__m256i&, __m256i& weight, __m256i& excess) {
  excess = _mm256_dpbusd_epi32(excess, every_byte(0x80), weight);
}

template <bool, bool>
SPARSIFY_INLINE __m256i negative(__m256i v) {
  return _mm256_sub_epi32(_mm256_setzero_si256(), v);
}

template <bool>
SPARSIFY_INLINE Vec begin(const Byte* start) {
  return load_vec(start);
}

template <int, bool, bool>
SPARSIFY_INLINE Vec dot(Vec sum, Vec codes, Vec weight) {
  return _mm512_dpbusd_epi32(sum, codes, weight);
}

template <bool, bool>
SPARSIFY_INLINE Vec end(Vec sum) {
  return sum;
}

SPARSIFY_INLINE void add_group(float* sums, const float* row_scales, float scale, Vec total) {
  const __m512 by = _mm512_mul_ps(_mm512_loadu_ps(row_scales), _mm512_set1_ps(scale));
  _mm512_storeu_ps(sums, _mm512_fmadd_ps(by, _mm512_cvtepi32_ps(total), _mm512_loadu_ps(sums)));
}

#include "rounded_tile.inl"

#include "rounded_product.inl"

}  // namespace

#include "rounded_exports.inl"

}  // namespace sparsify::avx512
