// From a pattern known at run time to one known to the compiler. Included into the namespace of one
// instruction set.

template <std::size_t N, std::size_t M>
struct Pattern {
  static constexpr std::size_t n = N, m = M;
};

template <typename Action>
void by_pattern(const Layout& layout, Action&& action) {
  if (layout.m == 4) return layout.n == 1 ? action(Pattern<1, 4>{}) : action(Pattern<2, 4>{});
  switch (layout.n) {
    case 1: return action(Pattern<1, 8>{});
    case 2: return action(Pattern<2, 8>{});
    case 3: return action(Pattern<3, 8>{});
    case 4: return action(Pattern<4, 8>{});
    case 5: return action(Pattern<5, 8>{});
    case 6: return action(Pattern<6, 8>{});
    default: return action(Pattern<7, 8>{});
  }
}

// The loop below has a short trip count that the compiler knows: written out, its indices become constants and
// its arrays registers.
#define SPARSIFY_UNROLL _Pragma("GCC unroll 64")
