// Checks the kernels of every instruction set that this processor can run: all patterns, values and groups,
// ragged sizes, 1 to 40, 64 and 130 tokens.
//
// The reference is compared with the product of the dense weight. The other instruction sets must give its
// very numbers where values are rounded or float32 values are whole numbers; elsewhere they are compared with
// the product of the dense weight too, within the error of a sum.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "isa.h"
#include "linear.h"
#include "weights.h"

namespace {

using namespace sparsify;
using check::Random;
using check::Weight;

constexpr std::size_t kTokens = 130;
constexpr std::size_t kDense = 12;  // tokens of the reference that are compared, the strange ones among them
constexpr float kUnwritten = -12345.0f;

struct Case {
  Weight weight;
  std::vector<float> x, bias;  // [kTokens][in], [out] or empty
  bool exact;                  // the sums do not depend on their order

  const float* b() const { return bias.empty() ? nullptr : bias.data(); }
};

void serial(void*, void (*task)(void*, std::size_t), void* data, std::size_t count) {
  for (std::size_t i = count; i-- > 0;) task(data, i);
}

std::vector<float> run(const Isa& isa, const Case& c, std::size_t tokens) {
  const Layout& l = c.weight.layout;
  constexpr std::size_t kGuard = 16;
  std::vector<float> y(tokens * l.out + kGuard, kUnwritten);
  linear(isa, l, c.weight.packed.data(), c.b(), c.x.data(), tokens, y.data(), Pool{nullptr, serial});
  for (std::size_t i = 0; i < kGuard; ++i) {
    if (y[tokens * l.out + i] != kUnwritten) {
      std::printf("%s writes beyond y\n", isa.name);
      std::exit(1);
    }
  }
  y.resize(tokens * l.out);
  return y;
}

[[noreturn]] void differ(const Case& c, const char* isa, const char* way, std::size_t tokens, std::size_t at,
                         double found, double expected) {
  const Layout& l = c.weight.layout;
  std::printf("%s%s, %zu:%zu, %zu -> %zu, values %d, group %zu, %zu tokens: y[%zu, %zu] is %.9g, not %.9g\n",
              isa, way, l.n, l.m, l.in, l.out, static_cast<int>(l.values), l.group, tokens, at / l.out,
              at % l.out, found, expected);
  std::exit(1);
}

// The first `tokens` tokens against the dense product.
void compare_dense(const Case& c, const char* isa, const char* way, const std::vector<float>& y,
                   std::size_t tokens) {
  const Layout& l = c.weight.layout;
  for (std::size_t i = 0; i < tokens * l.out; ++i) {
    const std::size_t row = i % l.out;
    const check::Element element = check::product(c.weight, c.x.data() + i / l.out * l.in, row);
    const double b = c.b() ? static_cast<double>(c.bias[row]) : 0, found = static_cast<double>(y[i]);
    const double bound = (element.size + std::fabs(b)) * 0x1p-24 * static_cast<double>(l.in + 8) + 1e-37;
    const double error = std::fabs(found - element.value - b);
    const bool good = std::isnan(element.value) ? std::isnan(found) : error <= bound;
    if (!good) differ(c, isa, way, tokens, i, found, element.value + b);
  }
}

void compare_bits(const Case& c, const char* isa, const char* way, const std::vector<float>& y,
                  const std::vector<float>& expected, std::size_t tokens) {
  for (std::size_t i = 0; i < y.size(); ++i) {
    const bool same = y[i] == expected[i] || (std::isnan(y[i]) && std::isnan(expected[i]));
    if (!same) differ(c, isa, way, tokens, i, static_cast<double>(y[i]), static_cast<double>(expected[i]));
  }
}

std::vector<std::size_t> token_counts(bool all) {
  if (!all) return {1, 2, 3, 4, 7, 20, 130};
  std::vector<std::size_t> counts;
  for (std::size_t t = 1; t <= 40; ++t) counts.push_back(t);
  counts.push_back(64);
  counts.push_back(kTokens);
  return counts;
}

// One way of an instruction set with all numbers of tokens. Returns the number of products.
std::size_t check_way(const Isa& isa, const char* way, const Case& c, const std::vector<float>& expected,
                      bool all) {
  std::size_t products = 0;
  for (const std::size_t tokens : token_counts(all)) {
    const std::vector<float> y = run(isa, c, tokens);
    if (c.exact) compare_bits(c, isa.name, way, y, expected, tokens);
    if (!c.exact) compare_dense(c, isa.name, way, y, tokens);
    ++products;
  }
  return products;
}

std::size_t check_isa(const Isa& isa, const Case& c, const std::vector<float>& expected, bool all) {
  std::size_t products = check_way(isa, "", c, expected, all);
  if (c.weight.layout.values != Values::float32) return products;
  // Both ways at any number of tokens.
  FloatKernels floats = isa.floats;
  const Isa forced{isa.name, floats, isa.rounded};
  floats.few_limit = kTokens + 1;
  products += check_way(forced, " by few", c, expected, all);
  floats.few_limit = 0;
  return products + check_way(forced, " by tiles", c, expected, all);
}

// A scale group of token t: ties of the rounding, numbers near both ends of float32, zeros, none at all.
float activation(std::size_t t, std::size_t k, Random& random) {
  switch (t) {
    case 3: return k % 32 == 5 ? 127.0f : static_cast<float>(random.between(-126, 125)) + 0.5f;
    case 4: return random.real(1e30f);
    case 5: return random.real(1e-38f);
    case 6: return 0.0f;
    case 7: return k % 50 == 20 ? std::nanf("") : random.real(1);
    case 8: return k % 64 == 40 ? -HUGE_VALF : random.real(1);
    default: return random.real(4);
  }
}

Case draw_case(const Layout& layout, bool whole, std::size_t seed) {
  Random random(seed);
  const bool floats = layout.values == Values::float32;
  std::vector<float> x(kTokens * layout.in);
  Case c{check::draw(layout, whole, random), x, {}, whole || !floats};
  for (std::size_t i = 0; i < c.x.size(); ++i) {
    const std::size_t t = i / layout.in, k = i % layout.in;
    if (whole) c.x[i] = static_cast<float>(random.between(-8, 8));
    else c.x[i] = floats ? random.real(4) : activation(t, k, random);
  }
  if (seed % 3) c.bias.resize(layout.out);
  for (float& b : c.bias) b = whole ? static_cast<float>(random.between(-8, 8)) : random.real(2);
  return c;
}

struct Tally {
  const Isa* isas[kMostIsas];
  std::size_t count, products[kMostIsas], cases;
};

void check_layout(Tally& tally, Layout layout, bool whole, bool all) {
  if (const char* wrong = derive(layout)) {
    std::printf("%s\n", wrong);
    std::exit(1);
  }
  const Case c = draw_case(layout, whole, ++tally.cases);
  if (const char* wrong = inspect(layout, c.weight.packed.data())) {
    std::printf("%s\n", wrong);
    std::exit(1);
  }
  const std::vector<float> expected = run(kReference, c, kTokens);
  compare_dense(c, "reference", "", expected, kDense);
  for (std::size_t i = 0; i < tally.count; ++i) {
    if (tally.isas[i] == &kReference) ++tally.products[i];
    else tally.products[i] += check_isa(*tally.isas[i], c, expected, all);
  }
}

void check_pattern(Tally& tally, std::size_t n, std::size_t m) {
  static const std::size_t ins[] = {1, 31, 64, 100, 131, 200, 260, 384}, outs[] = {1, 7, 8, 9, 16, 21, 40};
  const auto sized = [&](Values values, std::size_t group, bool whole) {
    const std::size_t i = tally.cases;
    check_layout(tally, {n, m, ins[i % 8], outs[i % 7], values, group, 0, 0, 0, 0, 0}, whole, true);
  };
  for (int i = 0; i < 4; ++i) sized(Values::float32, 0, i % 2 == 0);
  for (std::size_t group = 32; group <= 128; group += 32) {
    for (int i = 0; i < 2; ++i) {
      sized(Values::int8, group, false);
      sized(Values::int4, group, false);
    }
  }
  // More rows than one task takes.
  check_layout(tally, {n, m, 70, 530, Values::float32, 0, 0, 0, 0, 0, 0}, true, false);
  check_layout(tally, {n, m, 70, 150, n % 2 ? Values::int8 : Values::int4, 64, 0, 0, 0, 0, 0}, false, false);
}

}  // namespace

// check_kernels [INSTRUCTION_SET]: all of this processor, or the one named.
int main(int count, char** words) {
  Tally tally{};
  const Isa* found[kMostIsas];
  const std::size_t all = available_isas(found);
  for (std::size_t i = 0; i < all; ++i) {
    if (count < 2 || std::strcmp(words[1], found[i]->name) == 0) tally.isas[tally.count++] = found[i];
  }
  check_pattern(tally, 1, 4);
  check_pattern(tally, 2, 4);
  for (std::size_t n = 1; n <= 7; ++n) check_pattern(tally, n, 8);
  for (std::size_t i = 0; i < tally.count; ++i) {
    std::printf("%s: %zu weights, %zu products, no error\n", tally.isas[i]->name, tally.cases,
                tally.products[i]);
  }
}
