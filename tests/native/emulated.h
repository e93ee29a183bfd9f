// Instead of instructions that this machine may lack, for the programs of this folder: included before everything else.
//
// avxvnni: the same intrinsic compiles to the EVEX encoding of vpdpbusd, which CPUs with AVX-512 VNNI have.
// amx: the tile macros of isa.h work on eight tiles in memory, with the rules of Intel's manual (vol. 2, "AMX
// instructions"): what would be an invalid operation there ends the program here.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define PYCOMPRESS_EMULATED 1
#define PYCOMPRESS_BEGIN_AVXVNNI PYCOMPRESS_BEGIN("avx2,fma,f16c,bmi2,avx512f,avx512vl,avx512vnni")

namespace emulated {

struct Tile {
  std::size_t rows, row_bytes;
  std::uint8_t data[16][64];
};

struct Tiles {
  bool configured = false;
  Tile tile[8];
};

inline thread_local Tiles tiles;

inline void need(bool right, const char* rule) {
  if (right) return;
  std::fprintf(stderr, "invalid tile operation: %s\n", rule);
  std::abort();
}

inline void configure(const void* config) {
  const auto* bytes = static_cast<const std::uint8_t*>(config);
  need(bytes[0] == 1 && bytes[1] == 0, "palette 1, start row 0");
  for (int i = 2; i < 16; ++i) need(bytes[i] == 0, "reserved bytes are 0");
  for (int i = 0; i < 16; ++i) {
    std::uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, 2);
    const std::size_t rows = bytes[48 + i];
    need(i < 8 || (row_bytes == 0 && rows == 0), "8 tiles");
    need(row_bytes <= 64 && rows <= 16 && (row_bytes == 0) == (rows == 0), "up to 16 rows of 64 bytes");
    if (i < 8) tiles.tile[i] = {rows, row_bytes, {}};
  }
  tiles.configured = true;
}

inline void release() { tiles.configured = false; }

inline Tile& use(int tile) {
  need(tiles.configured, "tiles are configured");
  need(tiles.tile[tile].rows > 0, "the tile is configured");
  return tiles.tile[tile];
}

inline void zero(int tile) { std::memset(use(tile).data, 0, sizeof(Tile::data)); }

inline void load(int tile, const void* p, std::ptrdiff_t stride) {
  Tile& t = use(tile);
  zero(tile);
  const auto* from = static_cast<const char*>(p);
  for (std::size_t r = 0; r < t.rows; ++r) std::memcpy(t.data[r], from + r * stride, t.row_bytes);
}

inline void store(int tile, void* p, std::ptrdiff_t stride) {
  const Tile& t = use(tile);
  for (std::size_t r = 0; r < t.rows; ++r) std::memcpy(static_cast<char*>(p) + r * stride, t.data[r], t.row_bytes);
}

inline void check_sizes(int sum, int a, int b) {
  const Tile &c = use(sum), &x = use(a), &w = use(b);
  need(sum != a && sum != b && a != b, "three different tiles");
  need(x.row_bytes % 4 == 0 && c.row_bytes % 4 == 0, "row bytes are multiples of 4");
  need(c.rows == x.rows && c.row_bytes == w.row_bytes && x.row_bytes / 4 == w.rows, "sizes fit");
}

// tdpbf16ps: even and odd inputs are summed apart, then added to the sum; numbers below the normal range count as 0.
inline float normal(float value) { return std::fabs(value) < 0x1p-126f ? 0.0f : value; }

inline float widened(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return normal(value);
}

inline void dot_bfloat16(int sum, int a, int b) {
  check_sizes(sum, a, b);
  Tile &c = use(sum), &x = use(a), &w = use(b);
  for (std::size_t m = 0; m < c.rows; ++m) {
    float row[16], parts[16][2] = {};
    std::memcpy(row, c.data[m], 64);
    for (std::size_t k = 0; k < x.row_bytes / 4; ++k) {
      std::uint16_t two[2], line[32];
      std::memcpy(two, x.data[m] + 4 * k, 4);
      std::memcpy(line, w.data[k], 64);
      for (std::size_t n = 0; n < 16; ++n) {
        for (int j = 0; j < 2; ++j) {
          parts[n][j] = normal(std::fma(widened(two[j]), widened(line[2 * n + j]), parts[n][j]));
        }
      }
    }
    for (std::size_t n = 0; n < 16; ++n) row[n] = normal(row[n] + normal(parts[n][0] + parts[n][1]));
    std::memset(c.data[m], 0, 64);
    std::memcpy(c.data[m], row, c.row_bytes);
  }
  for (std::size_t m = c.rows; m < 16; ++m) std::memset(c.data[m], 0, 64);
}

// tdpbssd
inline void dot(int sum, int a, int b) {
  check_sizes(sum, a, b);
  Tile &c = use(sum), &x = use(a), &w = use(b);
  for (std::size_t m = 0; m < c.rows; ++m) {
    std::uint32_t row[16];
    std::memcpy(row, c.data[m], 64);
    for (std::size_t k = 0; k < x.row_bytes / 4; ++k) {
      std::int8_t four[4], line[64];
      std::memcpy(four, x.data[m] + 4 * k, 4);
      std::memcpy(line, w.data[k], 64);
      for (std::size_t n = 0; n < 16; ++n) {
        for (int j = 0; j < 4; ++j) row[n] += static_cast<std::uint32_t>(four[j] * line[4 * n + j]);
      }
    }
    std::memset(c.data[m], 0, 64);
    std::memcpy(c.data[m], row, c.row_bytes);
  }
  for (std::size_t m = c.rows; m < 16; ++m) std::memset(c.data[m], 0, 64);
}

}  // namespace emulated

#define PYCOMPRESS_TILES_ALLOWED() true
#define PYCOMPRESS_TILES_CONFIGURE(config) emulated::configure(&(config))
#define PYCOMPRESS_TILES_RELEASE() emulated::release()
#define PYCOMPRESS_TILE_ZERO(tile) emulated::zero(tile)
#define PYCOMPRESS_TILE_LOAD(tile, p, stride) emulated::load(tile, p, stride)
#define PYCOMPRESS_TILE_LOAD_ONCE(tile, p, stride) emulated::load(tile, p, stride)
#define PYCOMPRESS_TILE_STORE(tile, p, stride) emulated::store(tile, p, stride)
#define PYCOMPRESS_TILE_DOT(sum, a, b) emulated::dot(sum, a, b)
#define PYCOMPRESS_TILE_DOT_BF16(sum, a, b) emulated::dot_bfloat16(sum, a, b)
