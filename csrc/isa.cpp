#include "isa.h"

#if PYCOMPRESS_X86
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif PYCOMPRESS_ARM64 && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace pycompress {

const char* isa_name(Isa isa) {
  static const char* const names[isa_count] = {"scalar",    "avx2", "avxvnni", "avx512",  "avx512vnni",
                                               "avx512icl", "amx",  "neon",    "neondot", "i8mm"};
  return names[static_cast<int>(isa)];
}

bool implies(Isa level, Isa kernel) {
  const bool x86 = level <= Isa::amx;
  if (kernel == level || kernel == Isa::scalar) return true;
  if (x86 != (kernel <= Isa::amx) || kernel > level) return false;
  return kernel != Isa::avxvnni;  // a CPU with AVX-512 need not have the VEX form of VNNI
}

bool amx_allowed() {
#if PYCOMPRESS_X86 && defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool allowed = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return allowed;
#else
  return false;
#endif
}

#if PYCOMPRESS_X86

namespace {

struct Registers {
  unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r{};
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return Registers{};
  return r;
}

bool bit(unsigned word, int index) { return (word >> index) & 1u; }

// State that the operating system saves on a context switch (XCR0), 0 without XGETBV.
std::uint64_t saved_state() {
  if (!bit(cpuid(1, 0).c, 27)) return 0;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

}  // namespace

bool cpu_has(Isa isa) {
  static const std::uint64_t state = saved_state();
  static const Registers l1 = cpuid(1, 0), l7 = cpuid(7, 0), l71 = cpuid(7, 1);
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
  const bool avx2 = ymm && bit(l7.b, 5) && bit(l1.c, 12) && bit(l1.c, 29) && bit(l7.b, 8);
  const bool avx512 = avx2 && zmm && bit(l7.b, 16) && bit(l7.b, 30) && bit(l7.b, 17) && bit(l7.b, 31);
  const bool vnni = avx512 && bit(l7.c, 11);
  const bool icl = vnni && bit(l7.c, 1) && bit(l7.c, 6) && bit(l7.c, 12) && bit(l7.c, 14);
  switch (isa) {
    case Isa::scalar: return true;
    case Isa::avx2: return avx2;
    case Isa::avxvnni: return avx2 && bit(l71.a, 4);
    case Isa::avx512: return avx512;
    case Isa::avx512vnni: return vnni;
    case Isa::avx512icl: return icl;
    case Isa::amx: return icl && tiles && bit(l7.d, 24) && bit(l7.d, 25) && bit(l7.d, 22) && bit(l71.a, 5);
    default: return false;
  }
}

#elif PYCOMPRESS_ARM64

bool cpu_has(Isa isa) {
  bool dot = false, i8mm = false;
#if defined(__linux__)
  constexpr unsigned long armv82 = HWCAP_CRC32 | HWCAP_ATOMICS | HWCAP_ASIMDRDM;  // what the compiler may use besides
  constexpr unsigned long dot_bits = armv82 | HWCAP_ASIMDDP;
  dot = (getauxval(AT_HWCAP) & dot_bits) == dot_bits;
  i8mm = dot && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#endif
  switch (isa) {
    case Isa::scalar:
    case Isa::neon: return true;
    case Isa::neondot: return dot;
    case Isa::i8mm: return i8mm;
    default: return false;
  }
}

#else

bool cpu_has(Isa isa) { return isa == Isa::scalar; }

#endif

}  // namespace pycompress
