// int8 and int4 products with AVX-512 (F, BW, VL, DQ) and VNNI.
#include "rounded.h"

#if defined(__GNUC__) && !defined(__clang__)  // GCC 12: the operand that an intrinsic ignores
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define SPARSIFY_INLINE inline __attribute__((always_inline))

namespace sparsify::avx512 {
namespace {

#include "rounded_avx512.inl"

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
