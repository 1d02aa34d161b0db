// Few tokens: the weights are unpacked in registers as they stream by, and used for all tokens at once.
// Included inside the namespace of an instruction set after rounded_codes.inl and the operations on one row
// block (see rounded_avx2.cpp).

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

// Rows beyond `out` exist in the last block only: they are neither read nor written.
SPARSIFY_INLINE void store_rows(const Layout& l, std::size_t block, __m256 sum, const float* bias, float* y) {
  const std::size_t row = kRows * block, rest = l.out - row;
  if (rest >= kRows) {
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
  if (!kNibbles || kNibbleFactor == 1) return scales;
  return _mm256_mul_ps(scales, _mm256_set1_ps(1.0f / kNibbleFactor));
}

// Slots take turns at the chains of sums, so that a sum need not wait for the one before it.
constexpr int chains_of(int tokens) { return tokens <= 2 ? kChains : 1; }

// Sums of one scale group of a row block.
template <bool kNibbles, int T>
struct Sums {
  __m256i acc[chains_of(T) * T];
  Excess<kNibbles> excess[chains_of(T)];
};

template <int N, int M, bool kNibbles, int slot, int... I>
SPARSIFY_INLINE void few_slot(Sequence<I...>, const Parts& parts, std::size_t c, const Indices<N, M>& indices,
                              const Byte* codes, std::size_t stride, Sums<kNibbles, sizeof...(I)>& sums) {
  constexpr int step = Pattern<N, M>::kWindow, T = sizeof...(I), chain = slot % chains_of(T);
  constexpr bool kFold = step == 8 && !kNibbles && T > 2;  // the signs of the weights at once for all tokens
  const Byte* at = codes + (4 * c + slot) * step * code_width(step, kNibbles);
  __m256i index = indices.slot(slot), weight = weights<kNibbles>(parts, c, slot);
  sums.excess[chain].add(weight);
  if (kFold) fold<kNibbles>(index, weight);
  ((sums.acc[chain * T + I] = row_dot<kNibbles, kFold>(
        sums.acc[chain * T + I], row_table<step, kFold>(at + I * stride), index, weight)),
   ...);
}

// Slots 4c .. 4c + kSlots - 1.
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

// One scale group of one row block. The patterns that come here have an even number of slots.
template <int N, int M, bool kNibbles, int... I>
SPARSIFY_INLINE void few_group(Sequence<I...>, const Byte* group, std::size_t slots, const Byte* codes,
                               std::size_t stride, const float* scales, __m256* totals) {
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
  if constexpr (chains_of(T) == 2) {
    sums.excess[0].join(sums.excess[1]);
    ((sums.acc[I] = _mm256_add_epi32(sums.acc[I], sums.acc[T + I])), ...);
  }
  const __m256 scale = load_scales<kNibbles>(parts.scales);
  ((totals[I] = _mm256_fmadd_ps(_mm256_mul_ps(scale, _mm256_set1_ps(scales[I])),
                                _mm256_cvtepi32_ps(sums.excess[0].remove(sums.acc[I])), totals[I])),
   ...);
}

// Bytes between a weight's use and its prefetch, where the processor's own prefetching is slow to start and
// where it is not; bytes of codes that stay in the first cache beside the weights.
constexpr std::size_t kFewFar = 16384, kFewAhead = 2048, kFewCodes = 16384;

// B row blocks, a scale group each in turn, and T tokens; kSlots of a scale group if it is known to the
// compiler, else 0.
template <int N, int M, bool kNibbles, int T, std::size_t kSlots, std::size_t B>
SPARSIFY_INLINE void few_rows(const Layout& l, const Byte* group, std::size_t block, const Rounded& x,
                              std::size_t token, const float* bias, float* y) {
  const std::size_t bytes = l.block_bytes / l.groups(), slots = kSlots ? kSlots : l.slots;
  const bool slow = processor().slow_start;
  const std::size_t ahead = B == 1 && slow ? kFewFar : slow ? 2 * kFewAhead : kFewAhead;
  __m256 totals[B][T];
  for (auto& row : totals) {
    for (__m256& total : row) total = _mm256_setzero_ps();
  }
  for (std::size_t g = 0; g < l.groups(); ++g, group += bytes) {
    for (std::size_t b = 0; b < B; ++b) {
      const Byte* at = group + b * l.block_bytes;
      // One stream is foreseen by the processor itself, up to the end of a page.
      prefetch_far(at, ahead, B == 1 && !slow ? 1 : bytes);
      few_group<N, M, kNibbles>(Count<T>(), at, slots, x.codes_of(g, token), x.stride, x.scales_of(g, token),
                                totals[b]);
    }
  }
  for (std::size_t b = 0; b < B; ++b) {
    for (std::size_t t = 0; t < T; ++t) store_rows(l, block + b, totals[b][t], bias, y + (token + t) * l.out);
  }
}

template <int N, int M, bool kNibbles, int T, std::size_t kSlots>
void few_blocks(const Layout& l, const Byte* packed, const Rounded& x, std::size_t token, const float* bias,
                float* y, std::size_t first, std::size_t last) {
  std::size_t block = first;
  if (T * l.groups() * x.stride > kFewCodes) {  // four blocks for each reading of the codes
    for (; block + 4 <= last; block += 4)
      few_rows<N, M, kNibbles, T, kSlots, 4>(l, packed + block * l.block_bytes, block, x, token, bias, y);
  }
  for (; block < last; ++block)
    few_rows<N, M, kNibbles, T, kSlots, 1>(l, packed + block * l.block_bytes, block, x, token, bias, y);
}

template <int N, int M, bool kNibbles, std::size_t kSlots>
void few(const Layout& l, const Byte* packed, const Rounded& x, const float* bias, float* y, std::size_t first,
         std::size_t last) {
  std::size_t t = 0;
  for (; t + 4 <= x.tokens; t += 4) few_blocks<N, M, kNibbles, 4, kSlots>(l, packed, x, t, bias, y, first, last);
  if (t + 2 <= x.tokens) {
    few_blocks<N, M, kNibbles, 2, kSlots>(l, packed, x, t, bias, y, first, last);
    t += 2;
  }
  if (t < x.tokens) few_blocks<N, M, kNibbles, 1, kSlots>(l, packed, x, t, bias, y, first, last);
}
