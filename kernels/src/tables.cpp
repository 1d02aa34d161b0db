// The tables of the instruction sets that have kernels of their own.
#include "float.h"
#include "isa.h"
#include "rounded.h"

namespace sparsify {
namespace {

#define SPARSIFY_ROUNDED(isa) {isa::code_bytes, isa::quantize, isa::work_bytes, isa::rounded}
#if defined(SPARSIFY_X86)
const RoundedKernels kAvx2Rounded = SPARSIFY_ROUNDED(avx2);
const RoundedKernels kAvx512Rounded = SPARSIFY_ROUNDED(avx512);
#if defined(SPARSIFY_AMX)
const RoundedKernels kAmxRounded = SPARSIFY_ROUNDED(amx);
#endif
#endif
#if defined(SPARSIFY_ARM64)
const RoundedKernels kNeonRounded = SPARSIFY_ROUNDED(neon);
#endif
#undef SPARSIFY_ROUNDED

}  // namespace

// Addresses only, so that the tables stand before any code runs.
#if defined(SPARSIFY_X86)
const Isa kAvx2 = {"avx2", avx2::kFloats, kAvx2Rounded};
const Isa kAvx512 = {"avx512", avx512::kFloats, kAvx512Rounded};
#if defined(SPARSIFY_AMX)
const Isa kAmx = {"amx", avx512::kFloats, kAmxRounded};
#endif
#endif
#if defined(SPARSIFY_ARM64)
const Isa kNeon = {"neon", neon::kFloats, kNeonRounded};
#endif

}  // namespace sparsify
