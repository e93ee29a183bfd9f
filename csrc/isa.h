// CPU levels: their names, their detection, and the regions of source that are compiled for one of them.
//
// A level is a CPU generation with a fixed list of features, all of them checked by CPUID and XGETBV.
//
// An ISA file looks like this, and `<operation>/loop.inc` holds what the levels share:
//
//     #include "../isa.h"                     // headers and baseline declarations first
//     #include "int8_linear.h"
//     PYCOMPRESS_BEGIN_AVX2
//     namespace { ... #include "loop.inc" ... }   // all but the exported function: anonymous namespace
//     namespace pycompress { void int8_linear_avx2(const int8_linear_call& call) { ... } }
//     PYCOMPRESS_END
//
// No object with dynamic initialisation may stand in a region. `kernels.def` lists what exists.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#define PYCOMPRESS_X86 1
#include <immintrin.h>
#else
#define PYCOMPRESS_X86 0
#endif
#if defined(__aarch64__)
#define PYCOMPRESS_ARM64 1
#include <arm_neon.h>
#else
#define PYCOMPRESS_ARM64 0
#endif

namespace pycompress {

enum class Isa : int { scalar, avx2, avxvnni, avx512, avx512vnni, avx512icl, amx, neon, neondot, i8mm };

constexpr int isa_count = 10;

// Name of a level, as in PYCOMPRESS_ISA.
const char* isa_name(Isa isa);

// Whether this CPU and its operating system run the level.
bool cpu_has(Isa isa);

// Whether the operating system lets this process use tiles: it asks for the permission, once.
bool amx_allowed();

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  std::uint8_t palette, start_row, reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};

// Whether a CPU of `level` runs a kernel written for `kernel`.
bool implies(Isa level, Isa kernel);

}  // namespace pycompress

#if defined(__clang__)
#define PYCOMPRESS_PRAGMA(text) _Pragma(#text)
#define PYCOMPRESS_BEGIN(features) \
  PYCOMPRESS_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define PYCOMPRESS_END _Pragma("clang attribute pop")
#else
#define PYCOMPRESS_PRAGMA(text) _Pragma(#text)
#define PYCOMPRESS_BEGIN(features) _Pragma("GCC push_options") PYCOMPRESS_PRAGMA(GCC target(features))
#define PYCOMPRESS_END _Pragma("GCC pop_options")
#endif

#define PYCOMPRESS_BEGIN_AVX2 PYCOMPRESS_BEGIN("avx2,fma,f16c,bmi2")
#if !defined(PYCOMPRESS_BEGIN_AVXVNNI)  // the tests compile it for the other encoding of its instruction
#define PYCOMPRESS_BEGIN_AVXVNNI PYCOMPRESS_BEGIN("avx2,fma,f16c,bmi2,avxvnni")
#endif
#define PYCOMPRESS_BEGIN_AVX512 \
  PYCOMPRESS_BEGIN("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define PYCOMPRESS_BEGIN_AVX512VNNI \
  PYCOMPRESS_BEGIN("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#define PYCOMPRESS_BEGIN_AVX512ICL                                                                                  \
  PYCOMPRESS_BEGIN("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,"        \
                   "avx512bitalg,avx512vpopcntdq,prefer-vector-width=512")
#define PYCOMPRESS_BEGIN_AMX                                                                                        \
  PYCOMPRESS_BEGIN("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,"        \
                   "avx512bitalg,avx512vpopcntdq,amx-tile,amx-int8,prefer-vector-width=512")

// Tile instructions with literal tile numbers. Not the intrinsics: GCC 12 believes that they read less than they do,
// and drops the stores before them. Tiles belong to the thread, and other libraries configure them too: configure at
// the start of every parallel chunk, release at its end. The tests replace these macros by an emulation.
#if !defined(PYCOMPRESS_TILES_CONFIGURE)
#define PYCOMPRESS_TILES_ALLOWED() ::pycompress::amx_allowed()
#define PYCOMPRESS_TILES_CONFIGURE(config) asm volatile("ldtilecfg %0" ::"m"(config))
#define PYCOMPRESS_TILES_RELEASE() asm volatile("tilerelease")
#define PYCOMPRESS_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile ::)
#define PYCOMPRESS_TILE_MOVE(text, p, stride) \
  asm volatile(text ::"r"(p), "r"(static_cast<std::ptrdiff_t>(stride)) : "memory")
#define PYCOMPRESS_TILE_LOAD(tile, p, stride) PYCOMPRESS_TILE_MOVE("tileloadd (%0,%1,1), %%tmm" #tile, p, stride)
#define PYCOMPRESS_TILE_LOAD_ONCE(tile, p, stride) PYCOMPRESS_TILE_MOVE("tileloaddt1 (%0,%1,1), %%tmm" #tile, p, stride)
#define PYCOMPRESS_TILE_STORE(tile, p, stride) PYCOMPRESS_TILE_MOVE("tilestored %%tmm" #tile ", (%0,%1,1)", p, stride)
// sum += a . b, signed bytes; or bfloat16, which gives floats.
#define PYCOMPRESS_TILE_DOT(sum, a, b) asm volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)
#define PYCOMPRESS_TILE_DOT_BF16(sum, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)
#endif

// NEON belongs to the baseline. "arch=armv8.2-a": GCC inlines its intrinsics only into functions that have all of it.
#define PYCOMPRESS_BEGIN_NEON PYCOMPRESS_BEGIN("arch=armv8-a")
#define PYCOMPRESS_BEGIN_NEONDOT PYCOMPRESS_BEGIN("arch=armv8.2-a+dotprod")
#define PYCOMPRESS_BEGIN_I8MM PYCOMPRESS_BEGIN("arch=armv8.2-a+dotprod+i8mm")
