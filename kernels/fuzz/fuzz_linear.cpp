// Fuzzing of the kernels: any sizes, packed bytes and activations, every instruction set of this processor.
//
// Every buffer is exactly as long as the contract in isa.h says, so that AddressSanitizer sees a step beyond
// it. The results of all instruction sets are compared: exactly where values are rounded, and where float32
// values are small whole numbers, whose sums are exact in any order.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "checks.h"
#include "isa.h"
#include "linear.h"
#include "sparsify_kernels.h"

namespace {

using namespace sparsify;

// What the bytes of the input say, and random numbers that follow from them once they are used up.
class Source {
 public:
  Source(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {
    for (std::size_t i = 0; i < size; ++i) state_ = (state_ ^ data[i]) * 0x100000001b3u;
  }

  std::uint8_t byte() {
    if (at_ < size_) return data_[at_++];
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<std::uint8_t>(state_ >> 32);
  }
  std::size_t below(std::size_t bound) { return (byte() | static_cast<std::size_t>(byte()) << 8) % bound; }
  template <typename T>
  T any() {
    T value;
    std::uint8_t bytes[sizeof(T)];
    for (std::uint8_t& b : bytes) b = byte();
    std::memcpy(&value, bytes, sizeof value);
    return value;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_, at_ = 0;
  std::uint64_t state_ = 0xcbf29ce484222325u;
};

// Heap memory of exactly `count` elements, the first `shift` elements behind a cache line.
template <typename T>
class Exact {
 public:
  explicit Exact(std::size_t count, std::size_t shift = 0) : count_(count) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, (count + shift) * sizeof(T)) != 0) std::abort();
    memory_.reset(memory);
    data_ = static_cast<T*>(memory) + shift;
  }
  T* data() const { return data_; }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) const { return data_[i]; }

 private:
  std::unique_ptr<void, decltype(&std::free)> memory_{nullptr, &std::free};
  T* data_;
  std::size_t count_;
};

// Any bytes; finite scales with anything else; small whole numbers throughout.
enum class Content { hostile, finite, whole };
constexpr const char* kContents[] = {"hostile", "finite", "whole"};

// One of the floats of a case; those that are not whole lie about `size`, with a few of any kind between.
float number(Source& source, Content content, float size) {
  if (content == Content::whole) return static_cast<float>(static_cast<int>(source.byte() % 17) - 8);
  switch (source.byte() % 32) {
    case 0: return source.any<float>();
    case 1: return 0.0f;
    default: return static_cast<float>(source.any<std::int32_t>()) * 0x1p-31f * size;
  }
}

float size_of_numbers(Source& source) {
  static const float sizes[] = {1.0f, 1.0f, 1.0f, 1e-30f, 3e-37f, 1e-38f, 1e-43f, 0.0f, 1e30f, 3e38f};
  return sizes[source.byte() % 10];
}

Stated sizes(Source& source) {
  static const std::int64_t patterns[][2] = {{1, 4}, {2, 4}, {1, 8}, {2, 8}, {3, 8},
                                             {4, 8}, {5, 8}, {6, 8}, {7, 8}};
  const auto& pattern = patterns[source.byte() % 9];
  const std::int64_t values = source.byte() % 3;
  const std::int64_t group = values == 0 ? 0 : 32 * (1 + source.byte() % 4);
  const auto in = static_cast<std::int64_t>(1 + source.below(source.byte() % 4 ? 150 : 600));
  const auto out = static_cast<std::int64_t>(1 + source.below(source.byte() % 4 ? 40 : 160));
  return {pattern[0], pattern[1], in, out, group, values};
}

struct Case {
  Layout layout;
  Content content;
  std::size_t tokens;
  Exact<std::uint8_t> packed;
  Exact<float> x;
  Exact<float> bias;
  bool biased;

  Case(Source& source, const Layout& of)
      : layout(of), content(static_cast<Content>(source.byte() % 3)),
        tokens(1 + source.below(source.byte() % 4 ? 20 : 150)), packed(of.bytes(), source.byte() % 5),
        x(tokens * of.in, source.byte() % 3), bias(of.out, source.byte() % 3),
        biased(source.byte() % 4 != 0) {
    for (std::size_t i = 0; i < packed.size(); ++i) packed[i] = source.byte();
    if (content == Content::whole && layout.values == Values::float32) set_values(source);
    if (content != Content::hostile && layout.values != Values::float32) set_scales();
    if (rises() && layout.values != Values::float32) set_indices(source);
    const float size = size_of_numbers(source);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = number(source, content, size);
    for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = number(source, content, 1.0f);
  }

  const float* b() const { return biased ? bias.data() : nullptr; }

  // Whether the indices of every group rise, as `pack` writes them.
  bool rises() const { return content == Content::whole; }

 private:
  void set_values(Source& source) {
    const std::size_t chunk = float_chunk_bytes(layout.m);
    for (std::size_t at = 0; at < packed.size(); at += chunk) {
      for (std::size_t i = 32; i < chunk; i += 4) {
        const float value = number(source, content, 1.0f);
        std::memcpy(packed.data() + at + i, &value, sizeof value);
      }
    }
  }

  void set_indices(Source& source) {
    const std::size_t bytes = group_bytes(layout.m, layout.slots, layout.values == Values::int4);
    for (std::size_t at = 0; at < packed.size(); at += bytes) {
      const std::size_t start = source.byte() % (layout.m - layout.n + 1);
      for (std::size_t j = 0; j < 4 * layout.slots; ++j) {
        for (std::size_t row = 0; row < kRows; ++row) put_index(packed.data() + at, row, j, start + j % layout.n);
      }
    }
  }

  // The index of entry `j` of a row of a scale group.
  void put_index(std::uint8_t* group, std::size_t row, std::size_t j, std::size_t index) const {
    const std::size_t slot = j / 4, byte = 4 * row + j % 4;
    const auto put = [](std::uint8_t& to, std::size_t shift, std::size_t mask, std::size_t bits) {
      to = static_cast<std::uint8_t>((to & ~(mask << shift)) | bits << shift);
    };
    put(group[16 + slot / 4 * 32 + byte], 2 * (slot % 4), 3, index & 3);
    if (layout.m == 8) put(group[16 + (layout.slots + 3) / 4 * 32 + slot / 8 * 32 + byte], slot % 8, 1, index >> 2);
  }

  void set_scales() {
    const std::size_t bytes = group_bytes(layout.m, layout.slots, layout.values == Values::int4);
    for (std::size_t at = 0; at < packed.size(); at += bytes) {
      for (std::size_t i = 1; i < 16; i += 2) packed[at + i] &= 0xbf;  // an exponent below 16
    }
  }
};

[[noreturn]] void differ(const Case& c, const char* isa, const char* path, std::size_t at, float got,
                         float expected) {
  const Layout& l = c.layout;
  std::fprintf(stderr, "%s %s: %zu:%zu %zu -> %zu %s group %zu, %zu tokens, %s: y[%zu] is %a, not %a\n", isa,
               path, l.n, l.m, l.in, l.out, values_name(static_cast<int>(l.values)), l.group, c.tokens,
               kContents[static_cast<int>(c.content)], at, static_cast<double>(got),
               static_cast<double>(expected));
  std::abort();
}

void compare(const Case& c, const char* isa, const char* path, const Exact<float>& y,
             const Exact<float>& expected) {
  // Sums of arbitrary floats depend on their order, and a scale that is no number is refused with its file.
  if (c.content == Content::hostile) return;
  if (c.layout.values == Values::float32 && c.content != Content::whole) return;
  // Tiles put the entries of a group in the order of their columns, which is that of a file of ours.
  if (!c.rises() && std::strcmp(isa, "amx") == 0) return;
  for (std::size_t i = 0; i < y.size(); ++i) {
    // Where a product of two scales is subnormal, digits are lost as each instruction set comes by them.
    const bool same = y[i] == expected[i] || std::fabs(y[i] - expected[i]) < 0x1p-110f;
    if (!same && !(std::isnan(y[i]) && std::isnan(expected[i]))) differ(c, isa, path, i, y[i], expected[i]);
  }
}

Exact<float> result(const Case& c, std::size_t shift) {
  Exact<float> y(c.tokens * c.layout.out, shift);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = -12345.0f;  // no sum of whole numbers
  return y;
}

// Few tokens, the rows cut in two.
Exact<float> few(const Isa& isa, const Case& c) {
  const Layout& l = c.layout;
  Exact<float> x(c.tokens * l.padded);
  for (std::size_t t = 0; t < c.tokens; ++t) {
    for (std::size_t k = 0; k < l.padded; ++k) x[t * l.padded + k] = k < l.in ? c.x[t * l.in + k] : 0.0f;
  }
  Exact<float> y = result(c, c.tokens % 3);
  isa.floats.few(l, c.packed.data(), x.data(), c.tokens, c.b(), y.data(), l.blocks / 3, l.blocks);
  isa.floats.few(l, c.packed.data(), x.data(), c.tokens, c.b(), y.data(), 0, l.blocks / 3);
  return y;
}

Exact<float> tiles(const Isa& isa, const Case& c) {
  const Layout& l = c.layout;
  Exact<float> y = result(c, c.tokens % 3);
  std::size_t width = 0;
  for (std::size_t t = 0; t < c.tokens; t += width) {
    width = isa.floats.tile_width(c.tokens - t);
    const std::size_t count = c.tokens - t < width ? c.tokens - t : width, middle = l.padded / 2 / 8 * 8;
    Exact<float> tile(l.padded * width);
    isa.floats.transpose(c.x.data() + t * l.in, l.in, count, tile.data(), width, middle, l.padded);
    isa.floats.transpose(c.x.data() + t * l.in, l.in, count, tile.data(), width, 0, middle);
    for (std::size_t first = 0; first < l.blocks; first += 3) {
      const std::size_t last = first + 3 < l.blocks ? first + 3 : l.blocks;
      Exact<float> sums(kRows * (last - first) * width);
      isa.floats.tile(l, c.packed.data(), tile.data(), width, count, c.b(), y.data() + t * l.out, first, last,
                      sums.data());
    }
  }
  return y;
}

Exact<float> rounded(const Isa& of, const Case& c) {
  const RoundedKernels& isa = of.rounded;
  const Layout& l = c.layout;
  Exact<std::uint8_t> codes(isa.code_bytes(l, c.tokens));
  Exact<float> scales(l.groups() * c.tokens);
  isa.quantize(l, c.x.data(), c.tokens, c.tokens / 2, c.tokens, codes.data(), scales.data());
  isa.quantize(l, c.x.data(), c.tokens, 0, c.tokens / 2, codes.data(), scales.data());
  Exact<float> y = result(c, c.tokens % 3);
  for (std::size_t first = 0; first < l.blocks; first += 3) {
    const std::size_t last = first + 3 < l.blocks ? first + 3 : l.blocks;
    Exact<std::uint8_t> work(isa.work_bytes(l));
    isa.rounded(l, c.packed.data(), codes.data(), scales.data(), c.tokens, c.b(), y.data(), first, last,
                work.data());
  }
  return y;
}

void serial(void*, void (*task)(void*, std::size_t), void* data, std::size_t count) {
  for (std::size_t i = count; i-- > 0;) task(data, i);
}

void run_all(const Case& c) {
  const Isa* isas[kMostIsas];
  const std::size_t count = available_isas(isas);
  const bool floats = c.layout.values == Values::float32;
  const Exact<float> expected = floats ? few(kReference, c) : rounded(kReference, c);
  for (std::size_t i = 0; i < count; ++i) {
    const Isa& isa = *isas[i];
    if (!floats) compare(c, isa.name, "rounded", rounded(isa, c), expected);
    if (floats) compare(c, isa.name, "few", few(isa, c), expected);
    if (floats && isa.floats.tile != nullptr) compare(c, isa.name, "tiles", tiles(isa, c), expected);
    Exact<float> y = result(c, 0);
    linear(isa, c.layout, c.packed.data(), c.b(), c.x.data(), c.tokens, y.data(), Pool{nullptr, serial});
    compare(c, isa.name, "linear", y, expected);
  }
}

// Numbers that no file of ours holds must be refused by the C interface, which reads no byte then.
void refuse(Source& source) {
  sparsify_nm hostile{1 + source.byte() % 9, source.byte() % 2 ? 4 : 8, source.any<std::int64_t>(),
                      source.any<std::int64_t>(), 32 * (source.byte() % 6), source.byte() % 4};
  if (source.byte() % 2) hostile.in_features &= 0xffffff;
  if (source.byte() % 2) hostile.out_features &= 0xffffff;
  char message[100];
  const std::int64_t bytes = sparsify_nm_bytes(&hostile, message, sizeof message);
  if ((bytes < 0) == (message[0] == 0)) std::abort();
  const std::uint8_t one = 0;
  float x = 0, y = 0;
  if (sparsify_nm_check(&hostile, &one, 1, message, sizeof message) == SPARSIFY_OK) std::abort();
  if (sparsify_nm_linear(&hostile, &one, 1, nullptr, &x, 1, &y, 1, nullptr, 0) == SPARSIFY_OK) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Source source(data, size);
  refuse(source);
  const Case c(source, checked_layout(sizes(source)));
  inspect(c.layout, c.packed.data());
  run_all(c);
  return 0;
}
