// The int8 and int4 kernels of the instruction sets, assembled into tables in tables.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace sparsify {

#define SPARSIFY_ROUNDED_KERNELS                                                                             \
  std::size_t code_bytes(const Layout&, std::size_t tokens);                                                 \
  void quantize(const Layout&, const float* x, std::size_t tokens, std::size_t first, std::size_t last,      \
                std::uint8_t* codes, float* scales);                                                         \
  std::size_t work_bytes(const Layout&);                                                                     \
  void rounded(const Layout&, const std::uint8_t* packed, const std::uint8_t* codes, const float* scales,    \
               std::size_t tokens, const float* bias, float* y, std::size_t first, std::size_t last,         \
               std::uint8_t* work);

#if defined(SPARSIFY_X86)
namespace avx2 {
SPARSIFY_ROUNDED_KERNELS
}
namespace avx512 {
SPARSIFY_ROUNDED_KERNELS
}
#if defined(SPARSIFY_AMX)
namespace amx {
SPARSIFY_ROUNDED_KERNELS
}
#endif
#endif
#if defined(SPARSIFY_ARM64)
namespace neon {
SPARSIFY_ROUNDED_KERNELS
}
#endif

#undef SPARSIFY_ROUNDED_KERNELS

}  // namespace sparsify
