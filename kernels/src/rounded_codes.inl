// Activations rounded to codes. Included inside the namespace of an instruction set after rounded_unpack.inl
// and
//   std::size_t code_width(int window, bool nibbles)   bytes of the code of one column
//   void store_codes(Byte* to, int window, bool nibbles, __m256i codes)   stores 32 of them.

// Columns within reach of a slot.
SPARSIFY_INLINE int window_of(const Layout& l) {
  if (l.m == 4) return l.n == 1 ? 16 : 8;
  return l.n == 4 ? 8 : (l.n == 1 ? 32 : 16);
}

// Rounded activations: codes [groups][tokens][stride] and scales [groups][tokens], so that what a scale group
// of the weights needs of all tokens lies in one piece. Behind the last code there is room for the window of a
// slot that begins in the last group of M.
struct Rounded {
  const Byte* codes;
  const float* scales;
  std::size_t tokens, stride;

  SPARSIFY_INLINE const Byte* codes_of(std::size_t group, std::size_t token) const {
    return codes + (group * tokens + token) * stride;
  }
  SPARSIFY_INLINE const float* scales_of(std::size_t group, std::size_t token) const {
    return scales + group * tokens + token;
  }
};

SPARSIFY_INLINE std::size_t code_stride(const Layout& l) {
  return l.group * code_width(window_of(l), l.values == Values::int4);
}

// The bits of the largest magnitude of `group` floats: NaN and infinity have the largest of all.
SPARSIFY_INLINE int largest_bits(const float* x, std::size_t group) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i most[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (std::size_t i = 0; i < group; i += 16) {
    const __m256i a = _mm256_castps_si256(_mm256_loadu_ps(x + i));
    const __m256i b = _mm256_castps_si256(_mm256_loadu_ps(x + i + 8));
    most[0] = _mm256_max_epi32(most[0], _mm256_and_si256(a, magnitude));
    most[1] = _mm256_max_epi32(most[1], _mm256_and_si256(b, magnitude));
  }
  most[0] = _mm256_max_epi32(most[0], most[1]);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most[0]), _mm256_extracti128_si256(most[0], 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

// Rounds one scale group and returns its scale.
SPARSIFY_INLINE float round_group(const float* x, std::size_t group, int window, bool nibbles, Byte* codes) {
  const int bits = largest_bits(x, group);
  float most;
  __builtin_memcpy(&most, &bits, sizeof most);
  const bool finite = bits < 0x7f800000;
  // Infinite where the largest magnitude is tiny: such a group counts as zeros.
  const float quotient = finite && most > 0.0f ? 127.0f / most : 0.0f;
  const __m256 by = _mm256_set1_ps(quotient <= __FLT_MAX__ ? quotient : 0.0f);
  const __m256 keep = _mm256_castsi256_ps(_mm256_set1_epi32(finite ? -1 : 0));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const std::size_t width = code_width(window, nibbles);
  for (std::size_t i = 0; i < group; i += 32) {
    __m256i v[4];
    for (std::size_t k = 0; k < 4; ++k) {
      v[k] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_and_ps(_mm256_loadu_ps(x + i + 8 * k), keep), by));
    }
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    store_codes(codes + i * width, window, nibbles, _mm256_permutevar8x32_epi32(bytes, order));
  }
  return finite ? most / 127.0f : __builtin_nanf("");
}

inline void round_tokens(const Layout& l, const float* x, std::size_t tokens, std::size_t first,
                         std::size_t last, Byte* codes, float* scales) {
  const std::size_t stride = code_stride(l);
  const bool nibbles = l.values == Values::int4;
  const int window = window_of(l);
  for (std::size_t t = first; t < last; ++t) {
    for (std::size_t g = 0; g < l.groups(); ++g) {
      const std::size_t place = g * tokens + t;
      const float* from = x + t * l.in + g * l.group;
      float tail[128];
      if ((g + 1) * l.group > l.in) {
        const std::size_t real = l.in - g * l.group;
        for (std::size_t i = 0; i < l.group; ++i) tail[i] = i < real ? from[i] : 0.0f;
        from = tail;
      }
      scales[place] = round_group(from, l.group, window, nibbles, codes + place * stride);
    }
  }
}
