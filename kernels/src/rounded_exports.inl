// What rounded.h declares, of one instruction set. Included into its namespace.

std::size_t code_bytes(const Layout& l, std::size_t tokens) { return l.groups() * tokens * code_stride(l) + 32; }

void quantize(const Layout& l, const float* x, std::size_t tokens, std::size_t first, std::size_t last,
              std::uint8_t* codes, float* scales) {
  round_tokens(l, x, tokens, first, last, codes, scales);
}

std::size_t work_bytes(const Layout&) { return kWorkBytes; }

void rounded(const Layout& l, const std::uint8_t* packed, const std::uint8_t* codes, const float* scales,
             std::size_t tokens, const float* bias, float* y, std::size_t first, std::size_t last,
             std::uint8_t* work) {
  choose(l)(l, packed, {codes, scales, tokens, code_stride(l)}, bias, y, first, last, work);
}
