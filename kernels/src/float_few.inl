// y[t, 8 rows] = sum over entries of value * x[t, column], few tokens: the activations are permuted by the
// indices, eight rows at a time. Included into the namespace of one instruction set, which provides Row (8
// floats), Word (8 index words), Group (M activations) and the functions on them. `pick` is told the number
// of the field to use, and `next_field` comes after each: an instruction set uses the one or the other.

// Geometry of pattern N:M that the compiler unrolls: a span is a whole number of chunks and of groups.
template <std::size_t N, std::size_t M>
struct Float {
  static constexpr std::size_t fields = float_fields(M), bits = float_bits(M);
  static constexpr std::size_t chunks = N / gcd(N, fields);  // of one span
  static constexpr std::size_t span = M * fields / gcd(N, fields);
  static constexpr std::size_t bytes = float_chunk_bytes(M);
};

// Stores the rows of a block that exist.
inline void store_rows(Row sum, const float* bias, float* y, std::size_t rows) {
  if (rows == kRows) {
    store_row(y, bias ? add(sum, load_row(bias)) : sum);
    return;
  }
  float values[kRows];
  store_row(values, sum);
  for (std::size_t r = 0; r < rows; ++r) y[r] = values[r] + (bias ? bias[r] : 0.0f);
}

constexpr std::size_t kFewBlocks = 8;  // at once

// B row blocks, T tokens. Each block is a stream of its own: several at once keep more reads from memory under
// way than one long stream does. Independent sums hide the latency of the multiply-add. Weights are fetched
// early, into the second cache, as the first one is busy with activations. With one token a line in four will do,
// a page ahead: it calls up the processor's own prefetching, which ends with each page. With more, a late line
// would hold up the multiply-adds: every line then, and with four tokens as early as one run of blocks. Where
// the processor's own prefetching is slow to start, it is every line a page ahead, always.
template <std::size_t N, std::size_t M, std::size_t T, std::size_t B>
void few_blocks(const Layout& layout, const std::uint8_t* at, const float* x, const float* bias, float* y,
                std::size_t rows) {
  using F = Float<N, M>;
  constexpr std::size_t kSums = T * B == 1 ? 4 : T * B == 2 ? 2 : 1;
  constexpr std::size_t line = 64;
  const bool slow = processor().slow_start, every = T > 1 || slow;
  const std::size_t ahead = T == 1 || slow ? 4096 : T < 4 ? 2048 : B * layout.block_bytes;
  Row sums[B][T][kSums];
SPARSIFY_UNROLL
  for (std::size_t i = 0; i < B * T * kSums; ++i) sums[i / (T * kSums)][i / kSums % T][i % kSums] = zero_row();
  for (std::size_t k = 0; k < layout.padded; k += F::span) {
    Group<M> taken[T];
SPARSIFY_UNROLL
    for (std::size_t c = 0; c < F::chunks; ++c, at += F::bytes) {
SPARSIFY_UNROLL
      for (std::size_t b = 0; b < B; ++b) {
        const std::uint8_t* later = at + b * layout.block_bytes + ahead;
SPARSIFY_UNROLL
        for (std::size_t i = 0; i < F::bytes; i += line)
          if (every || i % (4 * line) == 0) prefetch_far(later + i);
      }
      Word index[B];
SPARSIFY_UNROLL
      for (std::size_t b = 0; b < B; ++b) index[b] = load_word(at + b * layout.block_bytes);
SPARSIFY_UNROLL
      for (std::size_t i = 0; i < F::fields; ++i) {
        const std::size_t entry = c * F::fields + i;
        if (entry % N == 0)
SPARSIFY_UNROLL
          for (std::size_t t = 0; t < T; ++t) taken[t] = group<M>(x + t * layout.padded + k + entry / N * M);
SPARSIFY_UNROLL
        for (std::size_t b = 0; b < B; ++b) {
          const Row value = load_row(reinterpret_cast<const float*>(at + b * layout.block_bytes + 32 + 32 * i));
SPARSIFY_UNROLL
          for (std::size_t t = 0; t < T; ++t)
            sums[b][t][i % kSums] =
                multiply_add(pick<M>(taken[t], index[b], i), value, sums[b][t][i % kSums]);
          index[b] = next_field<F::bits>(index[b]);
        }
      }
    }
  }
SPARSIFY_UNROLL
  for (std::size_t b = 0; b < B; ++b) {
    const std::size_t left = rows - b * kRows;
SPARSIFY_UNROLL
    for (std::size_t t = 0; t < T; ++t) {
      for (std::size_t i = 1; i < kSums; ++i) sums[b][t][0] = add(sums[b][t][0], sums[b][t][i]);
      store_rows(sums[b][t][0], bias ? bias + b * kRows : nullptr, y + t * layout.out + b * kRows,
                 left < kRows ? left : kRows);
    }
  }
}

// T tokens, B row blocks at a time, then one at a time.
template <std::size_t N, std::size_t M, std::size_t T>
void few_tokens(const Layout& layout, const std::uint8_t* packed, const float* x, const float* bias, float* y,
                std::size_t first, std::size_t last) {
  constexpr std::size_t B = kFewSums / T < kFewBlocks ? kFewSums / T : kFewBlocks;
  for (std::size_t block = first; block < last;) {
    const std::uint8_t* at = packed + block * layout.block_bytes;
    const std::size_t o = block * kRows;
    const float* b = bias ? bias + o : nullptr;
    if (block + B <= last) {
      few_blocks<N, M, T, B>(layout, at, x, b, y + o, layout.out - o);
      block += B;
    } else {
      few_blocks<N, M, T, 1>(layout, at, x, b, y + o, layout.out - o);
      ++block;
    }
  }
}

void few(const Layout& layout, const std::uint8_t* packed, const float* x, std::size_t tokens, const float* bias,
         float* y, std::size_t first, std::size_t last) {
  by_pattern(layout, [&](auto pattern) {
    constexpr std::size_t n = pattern.n, m = pattern.m;
    const std::size_t in = layout.padded, out = layout.out;
    std::size_t t = 0;
    for (; t + kFewTokens <= tokens; t += kFewTokens)
      few_tokens<n, m, kFewTokens>(layout, packed, x + t * in, bias, y + t * out, first, last);
    if (tokens - t >= 4) {
      few_tokens<n, m, 4>(layout, packed, x + t * in, bias, y + t * out, first, last);
      t += 4;
    }
    if (tokens - t >= 2) {
      few_tokens<n, m, 2>(layout, packed, x + t * in, bias, y + t * out, first, last);
      t += 2;
    }
    if (t < tokens) few_tokens<n, m, 1>(layout, packed, x + t * in, bias, y + t * out, first, last);
  });
}
