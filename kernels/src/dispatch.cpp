#include <cstdlib>
#include <cstring>

#if defined(SPARSIFY_X86)
#include <cpuid.h>
#endif
#if defined(SPARSIFY_AMX)
#include <sys/syscall.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
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

#if defined(SPARSIFY_AMX)
// Linux gives the memory of the tiles to a process that asks for it.
bool has_tiles() {
#if defined(SPARSIFY_TILE_MODEL)
  return true;
#else
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;  // leaf 7, EDX
  constexpr long kAsk = 0x1023, kTileData = 18;           // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (~d & (kTile | kInt8)) != 0) return false;
  return syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
#endif
}

bool has_amx() { return has_avx512() && __builtin_cpu_supports("avx512vbmi2") && has_tiles(); }
#endif
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

std::size_t first_cache() {
  constexpr std::size_t usual = 32768;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  if (bytes > 0) return static_cast<std::size_t>(bytes);
#endif
  return usual;
}

bool starts_slowly() {
#if defined(SPARSIFY_X86)
  unsigned a, b, c, d;
  return __get_cpuid(0, &a, &b, &c, &d) != 0 && b == signature_INTEL_ebx && has_avx512();
#else
  return false;
#endif
}

}  // namespace

const Processor& processor() {
  static const Processor found = {first_cache(), starts_slowly()};
  return found;
}

std::size_t available_isas(const Isa** tables) {
  std::size_t count = 0;
#if defined(SPARSIFY_X86)
  __builtin_cpu_init();
#if defined(SPARSIFY_AMX)
  if (has_amx()) tables[count++] = &kAmx;
#endif
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
