// Eight floats in one 256-bit register: for AVX2 and AVX-512 alike.

using Row = __m256;    // one float for each of the 8 rows of a block
using Word = __m256i;  // one index word for each row

inline Row zero_row() { return _mm256_setzero_ps(); }
inline Row load_row(const float* from) { return _mm256_loadu_ps(from); }
inline void store_row(float* to, Row value) { _mm256_storeu_ps(to, value); }
inline Row add(Row a, Row b) { return _mm256_add_ps(a, b); }
inline Row multiply_add(Row a, Row b, Row c) { return _mm256_fmadd_ps(a, b, c); }
inline Word load_word(const std::uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
template <int bits>
inline Word next_field(Word index) {
  return _mm256_srli_epi32(index, bits);
}
inline void prefetch_far(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }
inline void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }

// The M activations of a group, where `pick` takes them from: it reads the two (M = 4) or three (M = 8) low
// bits of each index word and ignores the rest.
template <std::size_t>
using Group = Row;
template <std::size_t M>
inline Row group(const float* x) {
  if constexpr (M == 4) {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(x));
  } else {
    return _mm256_loadu_ps(x);
  }
}
template <std::size_t M>
inline Row pick(Row taken, Word index, std::size_t) {
  if constexpr (M == 4) {
    return _mm256_permutevar_ps(taken, index);
  } else {
    return _mm256_permutevar8x32_ps(taken, index);
  }
}

// Transposes an 8 x 8 square.
inline void transpose_rows(Row (&rows)[8]) {
  Row pairs[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    rows[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    rows[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    rows[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    rows[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    const Row low = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31);
    rows[i] = low;
  }
}
