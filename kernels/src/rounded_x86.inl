// The int8 and int4 products of x86. Included inside the namespace of an instruction set after
// rounded_unpack.inl and the operations on its vectors (see rounded_avx2.cpp).

// Rounds one scale group, `group` floats, and returns its scale. NaN and infinity have the largest bits.
inline float round_group(const float* x, std::size_t group, std::size_t width, bool nibbles, Byte* codes) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (std::size_t i = 0; i < group; i += 8) {
    largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + i)), magnitude));
  }
  __m128i high = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  high = _mm_max_epi32(high, _mm_shuffle_epi32(high, 0x4e));
  high = _mm_max_epi32(high, _mm_shuffle_epi32(high, 0xb1));
  const float top = _mm_cvtss_f32(_mm_castsi128_ps(high));
  const bool finite = _mm_cvtsi128_si32(high) < 0x7f800000;
  // 127 / top is infinite where top is tiny: such a group counts as zeros.
  const float quotient = finite && top > 0.0f ? 127.0f / top : 0.0f;
  const float factor = quotient <= __FLT_MAX__ ? quotient : 0.0f;
  const __m256 by = _mm256_set1_ps(factor);
  const __m256 keep = _mm256_castsi256_ps(_mm256_set1_epi32(factor > 0.0f ? -1 : 0));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (std::size_t i = 0; i < group; i += 32) {
    __m256i v[4];
    for (std::size_t k = 0; k < 4; ++k) {
      const __m256 xs = _mm256_and_ps(_mm256_loadu_ps(x + i + 8 * k), keep);
      v[k] = _mm256_cvtps_epi32(_mm256_mul_ps(xs, by));
    }
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    store_codes(codes + i * width, width, nibbles, _mm256_permutevar8x32_epi32(bytes, order));
  }
  return finite ? top / 127.0f : __builtin_nanf("");
}

// Columns within reach of a slot.
SPARSIFY_INLINE int window_of(const Layout& l) {
  if (l.m == 4) return l.n == 1 ? 16 : 8;
  return l.n == 4 ? 8 : (l.n == 1 ? 32 : 16);
}

SPARSIFY_INLINE std::size_t code_stride(const Layout& l) {
  // Room for a window that begins in the last group of M, and an odd number of cache lines, so that the
  // same columns of many tokens do not meet in the same cache set.
  return ((l.padded * code_width(window_of(l), l.values == Values::int4) + 32 + 63) / 64 | 1) * 64;
}

inline void round_tokens(const Layout& l, const float* x, std::size_t first, std::size_t last, Byte* codes,
                         float* scales) {
  const std::size_t groups = l.padded / l.group, stride = code_stride(l);
  const bool nibbles = l.values == Values::int4;
  const std::size_t width = code_width(window_of(l), nibbles);
  for (std::size_t t = first; t < last; ++t) {
    Byte* row = codes + t * stride;
    for (std::size_t g = 0; g < groups; ++g) {
      const float* from = x + t * l.in + g * l.group;
      float tail[128];
      if ((g + 1) * l.group > l.in) {
        const std::size_t real = l.in - g * l.group;
        for (std::size_t i = 0; i < l.group; ++i) tail[i] = i < real ? from[i] : 0.0f;
        from = tail;
      }
      scales[t * groups + g] = round_group(from, l.group, width, nibbles, row + g * l.group * width);
    }
  }
}

// Rows beyond `out` exist in the last block only: they are neither read nor written.
SPARSIFY_INLINE void store_rows(const Layout& l, std::size_t block, __m256 sum, const float* bias, float* y) {
  const std::size_t row = 8 * block, rest = l.out - row;
  if (rest >= 8) {
    if (bias) sum = _mm256_add_ps(sum, _mm256_loadu_ps(bias + row));
    _mm256_storeu_ps(y + row, sum);
    return;
  }
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(rest)), lanes);
  if (bias) sum = _mm256_add_ps(sum, _mm256_maskload_ps(bias + row, mask));
  _mm256_maskstore_ps(y + row, mask, sum);
}

template <bool kNibbles>
SPARSIFY_INLINE __m256 load_scales(const Byte* p) {
  const __m256 scales = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return kNibbles && kNibbleFactor != 1 ? _mm256_mul_ps(scales, _mm256_set1_ps(1.0f / kNibbleFactor)) : scales;
}

// A list of numbers, so that the sums of tokens and rows are variables rather than elements of an array.
template <int... I>
struct Sequence {};
template <int n, int... I>
struct Counted : Counted<n - 1, n - 1, I...> {};
template <int... I>
struct Counted<0, I...> {
  using Type = Sequence<I...>;
};
template <int n>
using Count = typename Counted<n>::Type;

// The sums of one row block: I counts the tokens. Slots take turns at `kChains` sets of sums, so that one sum
// need not wait for the other.
template <bool kNibbles, int T>
struct Sums {
  static constexpr int chains = T <= 2 ? kChains : 1;
  __m256i acc[chains * T];
  Excess<kNibbles> excess[chains];
};

// Few tokens: the weights are unpacked in registers as they stream by.
template <int N, int M, bool kNibbles, int slot, int... I>
SPARSIFY_INLINE void few_slot(Sequence<I...>, const Parts& parts, std::size_t c, const Indices<N, M>& indices,
                              const Byte* codes, std::size_t stride, Sums<kNibbles, sizeof...(I)>& sums) {
  constexpr int step = Pattern<N, M>::kWindow, T = sizeof...(I), chain = slot % Sums<kNibbles, T>::chains;
  constexpr bool kFold = step == 8 && !kNibbles && T > 2;  // the sign of a weight, for all tokens
  const Byte* at = codes + (4 * c + slot) * step * code_width(step, kNibbles);
  __m256i index = indices.slot(slot), weight = weights<kNibbles>(parts, c, slot);
  sums.excess[chain].add(weight);
  if (kFold) fold<kNibbles>(index, weight);
  ((sums.acc[chain * T + I] = row_dot<kNibbles, kFold>(
        sums.acc[chain * T + I], row_table<step, kFold>(at + I * stride), index, weight)),
   ...);
}

template <int N, int M, bool kNibbles, int kSlots, int T>
SPARSIFY_INLINE void few_chunk(const Parts& parts, std::size_t c, bool upper, const Byte* codes,
                               std::size_t stride, Sums<kNibbles, T>& sums) {
  const Indices<N, M> indices(parts, c, upper);
  few_slot<N, M, kNibbles, 0>(Count<T>(), parts, c, indices, codes, stride, sums);
  few_slot<N, M, kNibbles, 1>(Count<T>(), parts, c, indices, codes, stride, sums);
  if (kSlots == 2) return;
  few_slot<N, M, kNibbles, 2>(Count<T>(), parts, c, indices, codes, stride, sums);
  few_slot<N, M, kNibbles, 3>(Count<T>(), parts, c, indices, codes, stride, sums);
}

// One scale group of one row block.
template <int N, int M, bool kNibbles, int... I>
SPARSIFY_INLINE void few_group(Sequence<I...>, const Byte* group, std::size_t slots, const Byte* codes,
                               std::size_t stride, const float* scales, std::size_t groups, __m256* totals) {
  constexpr int T = sizeof...(I);
  const Parts parts = parts_of<M>(group, slots);
  Sums<kNibbles, T> sums{};
  std::size_t c = 0;
  for (; 4 * c + 8 <= slots; c += 2) {
    few_chunk<N, M, kNibbles, 4>(parts, c, false, codes, stride, sums);
    few_chunk<N, M, kNibbles, 4>(parts, c + 1, true, codes, stride, sums);
  }
  if (4 * c + 4 <= slots) few_chunk<N, M, kNibbles, 4>(parts, c++, false, codes, stride, sums);
  if (4 * c < slots) few_chunk<N, M, kNibbles, 2>(parts, c, c % 2 != 0, codes, stride, sums);
  if (sums.chains == 2) {
    sums.excess[0].join(sums.excess[sums.chains - 1]);
    ((sums.acc[I] = _mm256_add_epi32(sums.acc[I], sums.acc[(sums.chains - 1) * T + I])), ...);
  }
  const __m256 scale = load_scales<kNibbles>(parts.scales);
  ((totals[I] = _mm256_fmadd_ps(_mm256_mul_ps(scale, _mm256_set1_ps(scales[I * groups])),
                                _mm256_cvtepi32_ps(sums.excess[0].remove(sums.acc[I])), totals[I])),
   ...);
}

template <int N, int M, bool kNibbles, int T, std::size_t kSlots>
SPARSIFY_INLINE void few_rows(const Layout& l, const Byte* group, std::size_t block, const Byte* codes,
                              std::size_t stride, const float* scales, const float* bias, float* y) {
  const std::size_t groups = l.padded / l.group, bytes = l.block_bytes / groups;
  const std::size_t slots = kSlots ? kSlots : l.slots;
  const std::size_t group_codes = l.group * code_width(Pattern<N, M>::kWindow, kNibbles);
  __m256 totals[T];
  for (__m256& total : totals) total = _mm256_setzero_ps();
  for (std::size_t g = 0; g < groups; ++g, group += bytes, codes += group_codes) {
    few_group<N, M, kNibbles>(Count<T>(), group, slots, codes, stride, scales + g, groups, totals);
  }
  for (std::size_t t = 0; t < T; ++t) store_rows(l, block, totals[t], bias, y + t * l.out);
}

template <int N, int M, bool kNibbles, std::size_t kSlots>
void few(const Layout& l, const Byte* packed, const Byte* codes, const float* scales, std::size_t tokens,
         const float* bias, float* y, std::size_t first, std::size_t last) {
  const std::size_t groups = l.padded / l.group, stride = code_stride(l);
  for (std::size_t block = first; block < last; ++block) {
    const Byte* group = packed + block * l.block_bytes;
    std::size_t t = 0;
#define SPARSIFY_FEW(T)                                                                                       \
  for (; t + T <= tokens; t += T) {                                                                           \
    few_rows<N, M, kNibbles, T, kSlots>(l, group, block, codes + t * stride, stride, scales + t * groups, bias, \
                                        y + t * l.out);                                                       \
  }
    SPARSIFY_FEW(4)
    SPARSIFY_FEW(2)
    SPARSIFY_FEW(1)
#undef SPARSIFY_FEW
  }
}
