// Few tokens: the weights are unpacked in registers as they stream by. Included into rounded_neon.cpp.

// One row block, T tokens from `token` on.
template <int M, bool kNibbles, bool kWide, std::size_t T>
void few_rows(const Product& p, std::size_t block, std::size_t token) {
  Floats sum[T];
SPARSIFY_UNROLL
  for (std::size_t t = 0; t < T; ++t) sum[t] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
  for (std::size_t g = 0; g < p.groups; ++g) {
    Sums exact[T];
SPARSIFY_UNROLL
    for (std::size_t t = 0; t < T; ++t) exact[t] = {vdupq_n_s32(0), vdupq_n_s32(0)};
    const Byte* codes = p.codes_of(token, g);
    each_slot<M, kNibbles>(p.group(block, g), p.l.slots, p.places, [&](std::size_t s, const Slot& slot) {
      const Byte* at = codes + p.places.column[s];
SPARSIFY_UNROLL
      for (std::size_t t = 0; t < T; ++t) add_slot(exact[t], Table<kWide>(at + t * p.l.group), slot);
    });
    const Floats weight_scales = load_scales(p.group(block, g));
SPARSIFY_UNROLL
    for (std::size_t t = 0; t < T; ++t) {
      add_group<kNibbles>(sum[t], exact[t], weight_scales, p.scale_of(token + t, g));
    }
  }
SPARSIFY_UNROLL
  for (std::size_t t = 0; t < T; ++t) p.store(token + t, block, sum[t]);
}

template <int M, bool kNibbles, bool kWide>
void few(const Product& p, std::size_t first, std::size_t last) {
  for (std::size_t block = first; block < last; ++block) {
    std::size_t t = 0;
    for (; t + 4 <= p.tokens; t += 4) few_rows<M, kNibbles, kWide, 4>(p, block, t);
    if (p.tokens - t >= 2) {
      few_rows<M, kNibbles, kWide, 2>(p, block, t);
      t += 2;
    }
    if (t < p.tokens) few_rows<M, kNibbles, kWide, 1>(p, block, t);
  }
}
