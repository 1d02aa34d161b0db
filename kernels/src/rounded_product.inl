// The product of one layout, by few tokens or by tiles. Included after rounded_tile.inl.

constexpr std::size_t kFewTokens = 8;  // up to so many, measured

template <int N, int M, bool kNibbles>
void few_tokens(const Layout& l, const Byte* packed, const Rounded& x, const float* bias, float* y,
                std::size_t first, std::size_t last) {
  constexpr std::size_t usual = 128 * N / (4 * M);  // slots of 128 columns
  if (l.slots == usual) {
    few<N, M, kNibbles, usual>(l, packed, x, bias, y, first, last);
  } else {
    few<N, M, kNibbles, 0>(l, packed, x, bias, y, first, last);
  }
}

template <int N, int M, bool kNibbles>
void many_tokens(const Call& call, std::size_t first, std::size_t last) {
  constexpr std::size_t full = kVecs * kBlocks;
  const std::size_t tokens = call.x.tokens;
  // Passes of about the same size, whole tiles but for the last.
  const std::size_t passes = (tokens + kTokens - 1) / kTokens;
  const std::size_t most = ((tokens + passes - 1) / passes + kTile - 1) / kTile * kTile;
  for (std::size_t t = 0; t < tokens; t += most) {
    const std::size_t some = tokens - t < most ? tokens - t : most;
    for (std::size_t block = first; block < last;) {
      const std::size_t left = last - block;
      const std::size_t count = left / full < kSets ? left / full : kSets;
      const std::size_t have = count ? count * full : (left < kBlocks ? left : kBlocks);
      const auto run = count ? pass<N, M, kNibbles, kVecs> : pass<N, M, kNibbles, 1>;
      run(call, block, count ? count : 1, have, t, some);
      block += have;
    }
  }
}

template <int N, int M, bool kNibbles>
void product(const Layout& l, const Byte* packed, const Rounded& x, const float* bias, float* y,
             std::size_t first, std::size_t last, Byte* work) {
  if constexpr (Pattern<N, M>::kEven && Pattern<N, M>::kWindow < 32) {
    if (x.tokens <= kFewTokens) return few_tokens<N, M, kNibbles>(l, packed, x, bias, y, first, last);
  }
  Call call = {l, packed, x, bias, y, {}, {}};
  for (std::size_t s = 0; s < kSets; ++s) call.sets[s] = cut(work, s);
  if (!Pattern<N, M>::kEven) {
    find_places(l.n, l.slots, code_width(Pattern<N, M>::kWindow, kNibbles), call.places);
  }
  many_tokens<N, M, kNibbles>(call, first, last);
}

using Product = decltype(&product<2, 4, true>);

template <bool kNibbles>
inline Product choose_pattern(const Layout& l) {
  if (l.m == 4) return l.n == 1 ? product<1, 4, kNibbles> : product<2, 4, kNibbles>;
  switch (l.n) {
    case 1: return product<1, 8, kNibbles>;
    case 2: return product<2, 8, kNibbles>;
    case 4: return product<4, 8, kNibbles>;
    default: return product<0, 8, kNibbles>;
  }
}

inline Product choose(const Layout& l) {
  return l.values == Values::int4 ? choose_pattern<true>(l) : choose_pattern<false>(l);
}
