// float32 kernels for AVX-512: 32 registers of 16 floats; rows stay in halves of them, as they are packed.
#include <immintrin.h>

#include "float.h"

namespace sparsify::avx512 {
namespace {

#include "pattern.inl"

#include "float_x86.inl"

constexpr std::size_t kFewTokens = 8;  // at once
constexpr std::size_t kFewSums = 16;    // tokens times row blocks at once

#include "float_few.inl"

using Lanes = __m512;  // 16 tokens of a tile
constexpr std::size_t kLanes = 16;

inline Lanes zero_lanes() { return _mm512_setzero_ps(); }
inline Lanes load_lanes(const float* from) { return _mm512_load_ps(from); }
inline void store_lanes(float* to, Lanes value) { _mm512_store_ps(to, value); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
// Four values of a row, in each quarter; one of them for all tokens.
using Four = __m512;
inline Four load_four(const float* from) { return _mm512_broadcast_f32x4(_mm_loadu_ps(from)); }
inline Lanes one_of(Four four, std::size_t which) {
  switch (which) {
    case 0: return _mm512_permute_ps(four, 0x00);
    case 1: return _mm512_permute_ps(four, 0x55);
    case 2: return _mm512_permute_ps(four, 0xaa);
    default: return _mm512_permute_ps(four, 0xff);
  }
}

// A multiply-add takes 4 cycles and one or two start in each: 8 sums or more must be under way.
constexpr std::size_t kMostLanes = 8;
constexpr std::size_t tile_rows_at_once(std::size_t lanes) {
  return lanes == 1 ? 8 : lanes == 2 ? 4 : lanes <= 4 ? 2 : 1;
}
#define SPARSIFY_WIDTHS                                                                    \
  SPARSIFY_WIDTH(1) SPARSIFY_WIDTH(2) SPARSIFY_WIDTH(3) SPARSIFY_WIDTH(4) SPARSIFY_WIDTH(6) \
  SPARSIFY_WIDTH(8)

#include "float_tile.inl"

constexpr std::size_t kFewLimit = 20;  // measured

}  // namespace

const FloatKernels kFloats = {few, kFewLimit, tile_width, transpose, tile};

}  // namespace sparsify::avx512
