// What the AVX-512 kernels for int8 and int4 values share: how the stream is unpacked, how activations are
// rounded, and few tokens. Included inside the namespace of one of them, with AVX-512 F, BW, VL, DQ and VNNI.
//
// A code is the unsigned byte a + 128, for products with signed weights; 128 times the sum of the weights of
// a scale group, the same for all tokens, is taken off again. Weights of four bits are used sixteen times as
// large: that is how they come out of their byte without a subtraction.

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
