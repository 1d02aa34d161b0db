// The float32 kernels of the instruction sets, assembled into tables in tables.cpp.
#pragma once

#include "isa.h"

namespace sparsify {

#if defined(SPARSIFY_X86)
namespace avx2 {
extern const FloatKernels kFloats;
}
namespace avx512 {
extern const FloatKernels kFloats;
}
#endif
#if defined(SPARSIFY_ARM64)
namespace neon {
extern const FloatKernels kFloats;
}
#endif

}  // namespace sparsify
