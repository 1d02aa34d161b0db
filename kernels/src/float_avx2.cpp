// float32 kernels for AVX2 with FMA: 16 registers of 8 floats.
#include <immintrin.h>

#include "float.h"

namespace sparsify::avx2 {
namespace {

#include "pattern.inl"

#include "float_x86.inl"

constexpr std::size_t kFewTokens = 4;  // at once
constexpr std::size_t kFewSums = 16;   // tokens times row blocks at once

#include "float_few.inl"

using Lanes = __m256;  // 8 tokens of a tile
constexpr std::size_t kLanes = 8;

inline Lanes zero_lanes() { return _mm256_setzero_ps(); }
inline Lanes load_lanes(const float* from) { return _mm256_load_ps(from); }
inline void store_lanes(float* to, Lanes value) { _mm256_store_ps(to, value); }
// Four values of a row, in both halves; one of them for all tokens.
using Four = __m256;
inline Four load_four(const float* from) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(from)); }
inline Lanes one_of(Four four, std::size_t which) {
  switch (which) {
    case 0: return _mm256_permute_ps(four, 0x00);
    case 1: return _mm256_permute_ps(four, 0x55);
    case 2: return _mm256_permute_ps(four, 0xaa);
    default: return _mm256_permute_ps(four, 0xff);
  }
}

// A multiply-add takes 4 cycles and two start in each: 8 sums at least, better more, must be under way.
constexpr std::size_t kMostLanes = 12;
constexpr std::size_t tile_rows_at_once(std::size_t lanes) {
  return lanes == 1 ? 8 : lanes == 2 ? 4 : lanes <= 6 ? 2 : 1;
}
#define SPARSIFY_WIDTHS                                                                    \
  SPARSIFY_WIDTH(1) SPARSIFY_WIDTH(2) SPARSIFY_WIDTH(3) SPARSIFY_WIDTH(4) SPARSIFY_WIDTH(6) \
  SPARSIFY_WIDTH(8) SPARSIFY_WIDTH(10) SPARSIFY_WIDTH(12)

#include "float_tile.inl"

constexpr std::size_t kFewLimit = 20;  // measured

}  // namespace

const FloatKernels kFloats = {few, kFewLimit, tile_width, transpose, tile};

}  // namespace sparsify::avx2
