// Many tokens: rows of packed weights times a transposed tile of activations [padded][width], so that one
// value of W is multiplied with `width` tokens at once. Included after float_few.inl; the instruction set
// provides Lanes (kLanes floats) and the functions on them.

// Bytes of activations and weights that a run over all row blocks reads again and again: they should stay in
// the first cache, of 32 or 48 KiB, beside the sums of a row.
constexpr std::size_t kCacheBytes = 28000, kMoreCacheBytes = 36000;

// Columns of one step: a multiple of the span.
template <std::size_t N, std::size_t M>
constexpr std::size_t step_columns(std::size_t width, std::size_t cache) {
  using F = Float<N, M>;
  const std::size_t bytes = F::span * width * sizeof(float) + F::chunks * F::bytes;
  return (bytes >= cache ? 1 : cache / bytes) * F::span;
}

// The values of one row block, whose rows the packed layout interleaves, as [row][entries]: four values of a row
// then come with one read, where a read for each would cost as much as one of the activations.
template <std::size_t N, std::size_t M, std::size_t entries>
inline void transpose_values(const std::uint8_t* at, std::size_t chunks, float* values) {
  using F = Float<N, M>;
  for (std::size_t c = 0; c < chunks; ++c, at += F::bytes, values += F::fields) {
SPARSIFY_UNROLL
    for (std::size_t i = 0; i < F::fields; i += 8) {
      Row rows[8];
      for (std::size_t e = 0; e < 8; ++e)
        rows[e] = load_row(reinterpret_cast<const float*>(at + 32) + 8 * (i + e));
      transpose_rows(rows);
      for (std::size_t r = 0; r < 8; ++r) store_row(values + r * entries + i, rows[r]);
    }
  }
}

// R rows of one block, V registers of tokens each: sums [row][width] += W x over `spans` spans of columns. `words`
// are the index words of the first row, `values` [row][entries].
template <std::size_t N, std::size_t M, std::size_t V, std::size_t R, std::size_t entries>
inline void tile_rows(const std::uint8_t* words, const float* values, const float* x, std::size_t spans, float* sums,
                      bool begin) {
  using F = Float<N, M>;
  constexpr std::size_t width = V * kLanes;
  Lanes sum[R][V];
SPARSIFY_UNROLL
  for (std::size_t r = 0; r < R; ++r)
SPARSIFY_UNROLL
    for (std::size_t v = 0; v < V; ++v)
      sum[r][v] = begin ? zero_lanes() : load_lanes(sums + r * width + v * kLanes);
  for (std::size_t s = 0; s < spans; ++s, x += F::span * width) {
SPARSIFY_UNROLL
    for (std::size_t c = 0; c < F::chunks; ++c, words += F::bytes, values += F::fields) {
      std::uint32_t index[R];
      Four four[R];
SPARSIFY_UNROLL
      for (std::size_t r = 0; r < R; ++r) __builtin_memcpy(&index[r], words + 4 * r, 4);  // at any address
SPARSIFY_UNROLL
      for (std::size_t i = 0; i < F::fields; ++i) {
SPARSIFY_UNROLL
        for (std::size_t r = 0; r < R; ++r) {
          if (i % 4 == 0) four[r] = load_four(values + r * entries + i);
          const float* from = x + ((c * F::fields + i) / N * M + (index[r] & (M - 1))) * width;
          index[r] >>= F::bits;
          const Lanes value = one_of(four[r], i % 4);
SPARSIFY_UNROLL
          for (std::size_t v = 0; v < V; ++v)
            sum[r][v] = multiply_add(value, load_lanes(from + v * kLanes), sum[r][v]);
        }
      }
    }
  }
SPARSIFY_UNROLL
  for (std::size_t r = 0; r < R; ++r)
SPARSIFY_UNROLL
    for (std::size_t v = 0; v < V; ++v) store_lanes(sums + r * width + v * kLanes, sum[r][v]);
}

// All row blocks of a task, step by step over the columns.
template <std::size_t N, std::size_t M, std::size_t V>
void tile_sums(const Layout& layout, const std::uint8_t* packed, const float* x, std::size_t blocks, float* sums) {
  using F = Float<N, M>;
  constexpr std::size_t width = V * kLanes, rows = tile_rows_at_once(V), line = 64;
  constexpr std::size_t most = step_columns<N, M>(width, kMoreCacheBytes), entries = most / M * N;
  const std::size_t step = processor().cache < 49152 ? step_columns<N, M>(width, kCacheBytes) : most;
  alignas(line) float values[kRows * entries];
  for (std::size_t k = 0; k < layout.padded; k += step) {
    const std::size_t spans = (layout.padded - k < step ? layout.padded - k : step) / F::span;
    const std::size_t offset = k / F::span * F::chunks * F::bytes, bytes = spans * F::chunks * F::bytes;
    // The columns of the next step, a share of them with each block.
    const float* later = x + (k + step) * width;
    const std::size_t columns = k + step < layout.padded ? step * width / blocks : 0;
    for (std::size_t b = 0; b < blocks; ++b) {
      for (std::size_t i = 0; i < columns; i += line / sizeof(float)) prefetch_far(later + b * columns + i);
      const std::uint8_t* at = packed + b * layout.block_bytes + offset;
      // The next block's weights lie too far away for the processor to guess.
      const std::uint8_t* next = b + 1 < blocks ? at + layout.block_bytes : packed + offset + bytes;
      transpose_values<N, M, entries>(at, spans * F::chunks, values);
      for (std::size_t row = 0; row < kRows; row += rows) {
        for (std::size_t p = bytes * row / kRows; p < bytes * (row + rows) / kRows; p += line) prefetch(next + p);
        tile_rows<N, M, V, rows, entries>(at + 4 * row, values + row * entries, x + k * width, spans,
                                          sums + (b * kRows + row) * width, k == 0);
      }
    }
  }
}

// sums [row][width] into y [tokens, out]: eight tokens of all blocks before the next eight, because tokens lie
// in pages of their own.
inline void store_sums(const Layout& layout, const float* sums, std::size_t width, std::size_t tokens,
                       const float* bias, float* y, std::size_t first, std::size_t last) {
  for (std::size_t t = 0; t < tokens; t += 8) {
    for (std::size_t block = first; block < last; ++block) {
      const std::size_t o = block * kRows, rows = layout.out - o < kRows ? layout.out - o : kRows;
      Row columns[8];
      for (std::size_t r = 0; r < kRows; ++r)
        columns[r] = load_row(sums + ((block - first) * kRows + r) * width + t);
      transpose_rows(columns);
      for (std::size_t i = 0; i < 8 && t + i < tokens; ++i)
        store_rows(columns[i], bias ? bias + o : nullptr, y + (t + i) * layout.out + o, rows);
    }
  }
}

template <std::size_t N, std::size_t M>
void tile_pattern(const Layout& layout, const std::uint8_t* packed, const float* x, std::size_t width,
                  std::size_t blocks, float* sums) {
  switch (width / kLanes) {
#define SPARSIFY_WIDTH(V) case V: return tile_sums<N, M, V>(layout, packed, x, blocks, sums);
    SPARSIFY_WIDTHS
#undef SPARSIFY_WIDTH
  }
}

// As many tiles as needed, all about equally wide; above 4 registers only even numbers are compiled.
std::size_t tile_width(std::size_t tokens) {
  const std::size_t lanes = (tokens + kLanes - 1) / kLanes;
  const std::size_t tiles = (lanes + kMostLanes - 1) / kMostLanes;
  const std::size_t width = (lanes + tiles - 1) / tiles;
  return (width > 4 ? (width + 1) / 2 * 2 : width) * kLanes;
}

void tile(const Layout& layout, const std::uint8_t* packed, const float* x, std::size_t width, std::size_t tokens,
          const float* bias, float* y, std::size_t first, std::size_t last, float* sums) {
  by_pattern(layout, [&](auto pattern) {
    tile_pattern<pattern.n, pattern.m>(layout, packed + first * layout.block_bytes, x, width, last - first, sums);
  });
  store_sums(layout, sums, width, tokens, bias, y, first, last);
}

// Eight columns of up to eight tokens, where some may not exist.
inline void transpose_edge(const float* x, std::size_t in, std::size_t tokens, std::size_t columns, float* tile,
                           std::size_t width) {
  for (std::size_t k = 0; k < 8; ++k)
    for (std::size_t t = 0; t < 8; ++t) tile[k * width + t] = k < columns && t < tokens ? x[t * in + k] : 0.0f;
}

void transpose(const float* x, std::size_t in, std::size_t tokens, float* tile, std::size_t width,
               std::size_t first, std::size_t last) {
  for (std::size_t k = first; k < last; k += 8) {
    const std::size_t columns = k >= in ? 0 : in - k < 8 ? in - k : 8;
    for (std::size_t t = 0; t < width; t += 8) {
      const std::size_t some = t >= tokens ? 0 : tokens - t < 8 ? tokens - t : 8;
      float* to = tile + k * width + t;
      if (columns < 8 || some < 8) {
        transpose_edge(x + t * in + k, in, some, columns, to, width);
        continue;
      }
      Row rows[8];
      for (std::size_t i = 0; i < 8; ++i) rows[i] = load_row(x + (t + i) * in + k);
      transpose_rows(rows);
      for (std::size_t i = 0; i < 8; ++i) store_row(to + i * width, rows[i]);
    }
  }
}
