#include <cstdlib>
#include <cstring>

#if defined(SPARSIFY_X86)
#include <cpuid.h>
#endif
#if defined(SPARSIFY_ARM64) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "isa.h"

namespace sparsify {
namespace {

#if defined(SPARSIFY_X86)
// Older compilers do not know the name of this one.
bool has_f16c() {
  unsigned a, b, c = 0, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(SPARSIFY_ARM64)
bool has_dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return true;  // every 64-bit Apple processor of a Mac has it
#endif
}
#endif

}  // namespace

std::size_t available_isas(const Isa** tables) {
  std::size_t count = 0;
#if defined(SPARSIFY_X86)
  __builtin_cpu_init();
  if (has_avx512()) tables[count++] = &kAvx512;
  if (has_avx2()) tables[count++] = &kAvx2;
#endif
#if defined(SPARSIFY_ARM64)
  if (has_dotprod()) tables[count++] = &kNeon;
#endif
  tables[count++] = &kReference;
  return count;
}

const Isa& best_isa() {
  static const Isa& best = []() -> const Isa& {
    const Isa* tables[kMostIsas];
    const std::size_t count = available_isas(tables);
    const char* wanted = std::getenv("SPARSIFY_ISA");
    for (std::size_t i = 0; wanted != nullptr && i < count; ++i) {
      if (std::strcmp(tables[i]->name, wanted) == 0) return *tables[i];
    }
    return *tables[0];
  }();
  return best;
}

}  // namespace sparsify
