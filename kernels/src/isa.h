// What one instruction set provides: a table of plain functions over ranges of row blocks.
//
// Every implementation is compiled in a file of its own with its own flags and lives in a namespace of its
// own. It calls nothing from the standard library: an inline function compiled there could be merged by
// the linker with the one used everywhere else, and crash an older processor. Memory comes from outside.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace sparsify {

// What kernels ask of the processor beside its instructions.
struct Processor {
  std::size_t cache;  // bytes of the first data cache
  // Whether memory keeps up only if every line of the weights of few tokens is fetched, long before it is used:
  // so it is on Intel's server processors. Elsewhere a line here and there calls up the processor's own fetching.
  bool slow_start;
};
const Processor& processor();

struct FloatKernels {
  // Few tokens: x [tokens, padded]. Writes y [tokens, out], the rows of blocks [first, last).
  void (*few)(const Layout&, const std::uint8_t* packed, const float* x, std::size_t tokens,
              const float* bias, float* y, std::size_t first, std::size_t last);
  // From this number of tokens on, `tile` is the faster way.
  std::size_t few_limit;

  // Many tokens, in tiles, each transposed to [padded][width]; columns and tokens that do not exist are zero.
  // The width to use where so many tokens are left: one tile takes that many, or all that are left.
  std::size_t (*tile_width)(std::size_t tokens);
  // Transposes columns [first, last), multiples of 8, of x [tokens, in].
  void (*transpose)(const float* x, std::size_t in, std::size_t tokens, float* tile, std::size_t width,
                    std::size_t first, std::size_t last);
  // Row blocks [first, last) of one tile into y [tokens, out]; `sums` has room for 8 (last - first) * width.
  void (*tile)(const Layout&, const std::uint8_t* packed, const float* tile, std::size_t width,
               std::size_t tokens, const float* bias, float* y, std::size_t first, std::size_t last,
               float* sums);
};

struct RoundedKernels {
  // `quantize` rounds tokens [first, last) of x [tokens, in] into codes (code_bytes for all tokens, zero where
  // columns are padded) and tokens * groups scales, both in an order of the instruction set's own.
  std::size_t (*code_bytes)(const Layout&, std::size_t tokens);
  void (*quantize)(const Layout&, const float* x, std::size_t tokens, std::size_t first, std::size_t last,
                   std::uint8_t* codes, float* scales);
  // Row blocks [first, last) for all tokens; `work` has room for work_bytes.
  std::size_t (*work_bytes)(const Layout&);
  void (*rounded)(const Layout&, const std::uint8_t* packed, const std::uint8_t* codes, const float* scales,
                  std::size_t tokens, const float* bias, float* y, std::size_t first, std::size_t last,
                  std::uint8_t* work);
};

struct Isa {
  const char* name;

  const FloatKernels& floats;
  const RoundedKernels& rounded;  // int8 and int4
};

extern const Isa kReference;
#if defined(SPARSIFY_X86)
extern const Isa kAvx2;
extern const Isa kAvx512;
#if defined(SPARSIFY_AMX)
extern const Isa kAmx;
#endif
#endif
#if defined(SPARSIFY_ARM64)
extern const Isa kNeon;
#endif

constexpr std::size_t kMostIsas = 4;

// The tables that this processor can run, best first; `tables` has room for kMostIsas. Returns how many.
std::size_t available_isas(const Isa** tables);

// The best of them; the environment variable SPARSIFY_ISA (reference, avx2, avx512, amx, neon) chooses another one.
// A name that this processor or build does not have is ignored.
const Isa& best_isa();

}  // namespace sparsify
