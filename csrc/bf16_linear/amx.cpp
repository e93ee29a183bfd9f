// bf16_linear on AMX: tdpbf16ps multiplies a tile of 16 rows x 32 inputs by one of 32 inputs x 16 outputs, 8 192 products in
// 16 cycles. The lines of a bitmap are expanded (vpexpandw) into tiles in L1, 16 x 32 inputs at a time, which serve all
// rows of a superblock of up to 512; sums of a part wait in memory meanwhile. 1 row goes the same way, so that it has the
// same bits as in a batch: up to 16 rows cost as much as one.
//
// Limit: few rows the expansion, some 6 operations for 64 weights, beside reading 2 bytes a nonzero; many rows the tiles.
// A prototype took 0.10 ms for 3072 x 768 at 90 % zeros and 1 to 16 rows, and was 1.4 to 1.9 times as fast as fp32
// unstructured from 32 rows on. Not timed as it stands: no such CPU was at hand.
#include "../isa.h"
#include "../thread_pool.h"
#include "bf16_linear.h"

#if PYCOMPRESS_X86
namespace pycompress {
void bf16_linear_avx512(const bf16_linear_call& call);
}

PYCOMPRESS_BEGIN_AMX
namespace pycompress {
namespace {

#include "../activation.inc"
//
#include "rounding.inc"

constexpr std::size_t tile_inputs = 32, strip_rows = 16, block_rows = 32, max_blocks = 16, max_tiles = 16;
constexpr std::size_t sums_in_block = block_rows * bf16_panel, sums_stride = bf16_panel * sizeof(float);
constexpr double mac_per_us = 5e5;

constexpr TileConfig tile_config{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

struct Tiles {  // [rows/16][in/32][16 rows][32 inputs], zeros behind the last input
  std::uint16_t* x;
  std::size_t in_tiles;
  std::uint16_t* at(std::size_t row, std::size_t tile) const {
    return x + ((row / strip_rows * in_tiles + tile) * strip_rows + row % strip_rows) * tile_inputs;
  }
};

// The weights of inputs [first, first + 32) as two tiles of [16 pairs of inputs][16 outputs x 2].
void expand_tiles(const std::uint32_t* masks, std::size_t inputs, const std::uint16_t*& values, std::uint16_t* lines) {
  alignas(64) static constexpr std::uint16_t order[64] = {
      0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
      16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  const __m512i low = _mm512_load_si512(order), high = _mm512_load_si512(order + 32);
  const auto next = [&](std::size_t i) {
    const std::uint32_t mask = i < inputs ? masks[i] : 0;
    const __m512i line = _mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(values));
    values += __builtin_popcount(mask);
    return line;
  };
  for (std::size_t i = 0; i < tile_inputs; i += 2, lines += 32) {
    const __m512i even = next(i), odd = next(i + 1);
    _mm512_store_si512(lines, _mm512_permutex2var_epi16(even, low, odd));
    _mm512_store_si512(lines + 512, _mm512_permutex2var_epi16(even, high, odd));
  }
}

// 16 or 32 rows times a part of `in`.
template <int strips>
void multiply_block(const std::uint16_t* x, std::size_t strip, const std::uint16_t* lines, std::size_t tiles, bool resumes,
                    float* sums) {
  if (resumes) {
    PYCOMPRESS_TILE_LOAD(0, sums, sums_stride);
    PYCOMPRESS_TILE_LOAD(1, sums + 16, sums_stride);
    if constexpr (strips == 2) {
      PYCOMPRESS_TILE_LOAD(2, sums + sums_in_block / 2, sums_stride);
      PYCOMPRESS_TILE_LOAD(3, sums + sums_in_block / 2 + 16, sums_stride);
    }
  } else {
    PYCOMPRESS_TILE_ZERO(0);
    PYCOMPRESS_TILE_ZERO(1);
    PYCOMPRESS_TILE_ZERO(2);
    PYCOMPRESS_TILE_ZERO(3);
  }
  for (std::size_t k = 0; k < tiles; ++k, x += 512, lines += 1024) {
    PYCOMPRESS_TILE_LOAD(6, lines, 64);
    PYCOMPRESS_TILE_LOAD(7, lines + 512, 64);
    PYCOMPRESS_TILE_LOAD_ONCE(4, x, 64);
    PYCOMPRESS_TILE_DOT_BF16(0, 4, 6);
    PYCOMPRESS_TILE_DOT_BF16(1, 4, 7);
    if constexpr (strips == 2) {
      PYCOMPRESS_TILE_LOAD_ONCE(5, x + strip, 64);
      PYCOMPRESS_TILE_DOT_BF16(2, 5, 6);
      PYCOMPRESS_TILE_DOT_BF16(3, 5, 7);
    }
  }
  PYCOMPRESS_TILE_STORE(0, sums, sums_stride);
  PYCOMPRESS_TILE_STORE(1, sums + 16, sums_stride);
  if constexpr (strips == 2) {
    PYCOMPRESS_TILE_STORE(2, sums + sums_in_block / 2, sums_stride);
    PYCOMPRESS_TILE_STORE(3, sums + sums_in_block / 2 + 16, sums_stride);
  }
}

// Blocks [first, last) of rows times panels [panel, last_panel).
void multiply_part(const bf16_linear_call& call, const Tiles& x, std::size_t panel, std::size_t last_panel,
                   std::size_t first, std::size_t last) {
  const bf16_weight& w = *call.weight;
  alignas(64) float sums[max_blocks * sums_in_block];
  alignas(64) std::uint16_t lines[max_tiles * 1024];
  PYCOMPRESS_TILES_CONFIGURE(tile_config);
  for (; panel < last_panel; ++panel) {
    const std::uint32_t* masks = w.masks + panel * w.in_features;
    const std::uint16_t* values = w.values + w.starts[panel];
    const std::size_t begin_row = first * block_rows, end_row = last * block_rows < call.rows ? last * block_rows : call.rows;
    if (x.in_tiles == 0) __builtin_memset(sums, 0, sizeof(sums));
    for (std::size_t tile = 0; tile < x.in_tiles; tile += max_tiles) {
      const std::size_t tiles = x.in_tiles - tile < max_tiles ? x.in_tiles - tile : max_tiles;
      for (std::size_t k = 0; k < tiles; ++k) {
        const std::size_t input = (tile + k) * tile_inputs, left = w.in_features - input;
        expand_tiles(masks + input, left < tile_inputs ? left : tile_inputs, values, lines + k * 1024);
      }
      for (std::size_t row = begin_row; row < end_row; row += block_rows) {
        float* to = sums + (row - begin_row) * bf16_panel;
        if (end_row - row > strip_rows) {
          multiply_block<2>(x.at(row, tile), x.in_tiles * 512, lines, tiles, tile > 0, to);
        } else {
          multiply_block<1>(x.at(row, tile), 0, lines, tiles, tile > 0, to);
        }
      }
    }
    const std::size_t out = panel * bf16_panel, left = w.out_features - out, width = left < bf16_panel ? left : bf16_panel;
    for (std::size_t row = begin_row; row < end_row; ++row) {
      finish(sums + (row - begin_row) * bf16_panel, w.bias + out, width, call.activation, call.y + row * w.out_features + out);
    }
  }
  PYCOMPRESS_TILES_RELEASE();
}

void round_rows(const bf16_linear_call& call, const Tiles& x) {
  const std::size_t in = call.weight->in_features;
  const std::size_t chunks = chunk_count(call.rows, static_cast<double>(call.rows) * static_cast<double>(in) * 2e-4, call.threads);
  parallel_for(chunks, call.threads, [&](std::size_t i) {
    for (std::size_t row = call.rows * i / chunks; row < call.rows * (i + 1) / chunks; ++row) {
      for (std::size_t tile = 0; tile < x.in_tiles; ++tile) {
        const std::size_t first = tile * tile_inputs, left = in - first, inputs = left < tile_inputs ? left : tile_inputs;
        std::uint16_t* to = x.at(row, tile);
        const float* from = call.x + row * in + first;
        for (std::size_t k = 0; k < inputs; ++k) to[k] = static_cast<std::uint16_t>(rounded_bits(from[k]) >> 16);
        for (std::size_t k = inputs; k < tile_inputs; ++k) to[k] = 0;
      }
    }
  });
}

void run(const bf16_linear_call& call) {
  if (!PYCOMPRESS_TILES_ALLOWED()) return bf16_linear_avx512(call);
  const bf16_weight& w = *call.weight;
  const std::size_t blocks = (call.rows + block_rows - 1) / block_rows;
  Tiles x{nullptr, (w.in_features + tile_inputs - 1) / tile_inputs};
  x.x = static_cast<std::uint16_t*>(scratch(0, (blocks * block_rows * x.in_tiles + 1) * tile_inputs * sizeof(std::uint16_t)));
  round_rows(call, x);
  const double size = static_cast<double>(w.in_features) * static_cast<double>(w.out_features);
  const double us = size * static_cast<double>(call.rows) / mac_per_us + size / 2.5e4;
  const std::size_t chunks = chunk_count(w.panels * blocks, us, call.threads);
  const std::size_t panel_chunks = chunks < w.panels ? chunks : w.panels;
  const std::size_t row_chunks = panel_chunks == 0 ? 0 : (chunks + panel_chunks - 1) / panel_chunks;
  parallel_for(panel_chunks * row_chunks, call.threads, [&](std::size_t i) {
    const std::size_t p = i / row_chunks, b = i % row_chunks, last = blocks * (b + 1) / row_chunks;
    const std::size_t panel = w.panels * p / panel_chunks, last_panel = w.panels * (p + 1) / panel_chunks;
    for (std::size_t first = blocks * b / row_chunks; first < last; first += max_blocks) {
      multiply_part(call, x, panel, last_panel, first, first + max_blocks < last ? first + max_blocks : last);
    }
  });
}

}  // namespace

void bf16_linear_amx(const bf16_linear_call& call) { run(call); }

}  // namespace pycompress
PYCOMPRESS_END
#endif
