// Instead of instructions that this machine may lack, for int8_levels.cpp: included before everything else.
//
// avxvnni: the same intrinsic compiles to the EVEX encoding of vpdpbusd, which CPUs with AVX-512 VNNI have.
#pragma once

#define PYCOMPRESS_EMULATED 1
#define PYCOMPRESS_BEGIN_AVXVNNI PYCOMPRESS_BEGIN("avx2,fma,f16c,bmi2,avx512f,avx512vl,avx512vnni")
