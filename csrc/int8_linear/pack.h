// An int8 weight in the layout of int8_linear.h, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../buffer.h"
#include "../isa.h"
#include "int8_linear.h"

namespace pycompress {

class Int8Packed {
 public:
  // `at(o, i)` gives the weight of an output and an input.
  template <class At>
  Int8Packed(std::size_t out, std::size_t in, At at) : Int8Packed(out, in) {
    each_line([=](std::size_t o, std::size_t i, std::int8_t* line, std::int32_t* sums) {
      const auto from = [=](std::size_t j, std::size_t k) { return at(o + j, i + k); };
      pack_line(line, sums, std::min<std::size_t>(16, weight_.out_features - o),
                std::min<std::size_t>(4, weight_.in_features - i), from);
    });
  }

  // Of the nonzero weights only, in lines of strips of `height` outputs, or as int8_bitmap or int8_steps.
  template <class At>
  static Int8Packed sparse(std::size_t out, std::size_t in, std::size_t height, At at) {
    Int8Packed packed(out, in, false);
    height == int8_steps ? packed.pack_steps(at) : packed.pack_sparse(height, at);
    return packed;
  }

  // From b [in, out], the second factor of a product of matrices: 4 rows of 16 bytes are woven into a line.
  static Int8Packed transposed(const std::int8_t* b, std::size_t in, std::size_t out) {
    Int8Packed packed(out, in);
    packed.each_line([=](std::size_t o, std::size_t i, std::int8_t* line, std::int32_t* sums) {
      const std::int8_t* from = b + i * out + o;
#if PYCOMPRESS_X86
      if (o + 16 <= out && i + 4 <= in) return weave(from, out, line, sums);
#endif
      const auto at = [=](std::size_t j, std::size_t k) { return from[k * out + j]; };
      pack_line(line, sums, std::min<std::size_t>(16, out - o), std::min<std::size_t>(4, in - i), at);
    });
    return packed;
  }

  // scale [out]; bias [out] or null; input_scale 0 for dynamic.
  void set(const float* scale, const float* bias, float input_scale) {
    std::copy_n(scale, weight_.out_features, scale_.data());
    if (bias) std::copy_n(bias, weight_.out_features, bias_.data());
    weight_.input_scale = input_scale;
  }

  void unpack(std::int8_t* to) const {  // [out, in]
    if (weight_.sparse) return unpack_sparse(to);
    for (std::size_t o = 0; o < weight_.out_features; ++o) {
      for (std::size_t i = 0; i < weight_.in_features; ++i) *to++ = weight_.data[offset(o, i)];
    }
  }

  const int8_weight& weight() const { return weight_; }
  std::size_t bytes() const {
    return data_.bytes() + sums_.bytes() + scale_.bytes() + bias_.bytes() + starts_.bytes() + groups_.bytes() + masks_.bytes();
  }

 private:
  Int8Packed(std::size_t out, std::size_t in, bool dense = true)
      : panels_((out + int8_panel - 1) / int8_panel),
        data_(dense ? panels_ * ((in + 3) / 4) * 128 : 0),
        sums_((in / int8_sum_chunk + 1) * panels_ * int8_panel),
        scale_(panels_ * int8_panel),
        bias_(panels_ * int8_panel) {
    weight_ = {out, in, panels_, (in + 3) / 4, data_.data(), sums_.data(), scale_.data(), bias_.data(), 0.0f, nullptr};
  }

  template <class At>
  void pack_sparse(std::size_t height, At at) {
    const std::size_t out = weight_.out_features, in = weight_.in_features;
    const std::size_t strip = height == int8_bitmap ? int8_panel : height, strips = panels_ * int8_panel / strip;
    const std::size_t chunks = in / int8_sum_chunk + 1, tiles = strip / 16;
    starts_ = Buffer<std::size_t>(strips * chunks + 1);
    if (height == int8_bitmap) masks_ = Buffer<std::uint64_t>(panels_ * weight_.groups * 2);
    std::vector<std::uint16_t> groups;
    std::vector<std::int8_t> values;
    std::int8_t lines[2 * 64];
    std::vector<bool> kept = kept_groups(strip, at);
    const bool whole_tiles = height == 32 && complete_tiles(kept);
    for (std::size_t s = 0; s < strips; ++s) {
      for (std::size_t i = 0; i < chunks; ++i) {
        const std::size_t first = i * (int8_sum_chunk / 4), last = std::min(first + int8_sum_chunk / 4, weight_.groups);
        for (std::size_t group = first; group < last; ++group) {
          if (!kept[s * weight_.groups + group]) continue;
          std::fill_n(lines, sizeof lines, std::int8_t{0});
          for (std::size_t j = 0; j < strip && s * strip + j < out; ++j) {
            for (std::size_t k = 0; k < 4 && group * 4 + k < in; ++k) {
              const std::int8_t value = at(s * strip + j, group * 4 + k);
              lines[j * 4 + k] = value;
              sums_.data()[i * panels_ * int8_panel + s * strip + j] += value;
            }
          }
          if (height == int8_bitmap) {
            for (std::size_t b = 0; b < sizeof lines; ++b) {
              if (lines[b] == 0) continue;
              masks_.data()[(s * weight_.groups + group) * 2 + b / 64] |= std::uint64_t{1} << b % 64;
              values.push_back(lines[b]);
            }
          } else {
            groups.push_back(static_cast<std::uint16_t>(group - first));
            values.insert(values.end(), lines, lines + tiles * 64);
          }
        }
        starts_.data()[s * chunks + i + 1] = height == int8_bitmap ? values.size() : groups.size();
      }
    }
    const double all = static_cast<double>(std::max<std::size_t>(1, strips * weight_.groups));
    keep(height, whole_tiles, height == int8_bitmap ? 1.0 : static_cast<double>(groups.size()) / all, groups, values);
  }

  // Outputs go on with their weights as far as the output that lags behind most lets a step reach. Chunks have whole pairs.
  template <class At>
  void pack_steps(At at) {
    const std::size_t out = weight_.out_features, in = weight_.in_features, chunks = in / int8_sum_chunk + 1;
    starts_ = Buffer<std::size_t>(panels_ * chunks + 1);
    std::vector<std::uint16_t> first_inputs;
    std::vector<std::int8_t> values;
    std::vector<std::size_t> inputs[int8_panel];
    for (std::size_t p = 0; p < panels_; ++p) {
      for (std::size_t i = 0; i < chunks; ++i) {
        const std::size_t first = i * int8_sum_chunk, last = std::min(first + int8_sum_chunk, in);
        std::size_t done[int8_panel] = {}, left = 0;
        for (std::size_t j = 0; j < int8_panel; ++j) {
          inputs[j].clear();
          const std::size_t o = p * int8_panel + j;
          for (std::size_t k = first; k < last && o < out; ++k) {
            const std::int8_t value = at(o, k);
            sums_.data()[i * panels_ * int8_panel + o] += value;
            if (value != 0) inputs[j].push_back(k);
          }
          left += inputs[j].size();
        }
        while (left > 0) {
          std::size_t from = last;
          for (std::size_t j = 0; j < int8_panel; ++j) {
            if (done[j] < inputs[j].size()) from = std::min(from, inputs[j][done[j]]);
          }
          from = first + (from - first) / int8_step_align * int8_step_align;
          const std::size_t step = first_inputs.size() % 2;
          first_inputs.push_back(static_cast<std::uint16_t>((from - first) / int8_step_align));
          if (step == 0) values.resize(values.size() + int8_step_pair);
          std::int8_t* pair = values.data() + values.size() - int8_step_pair;
          for (std::size_t j = 0; j < int8_panel; ++j) {
            for (std::size_t k = 0; k < 4 && done[j] < inputs[j].size() && inputs[j][done[j]] < from + 64; ++k, --left) {
              const std::size_t input = inputs[j][done[j]++], place = input - from;
              const int8_step_slot slot = step_slot(step, j, k);
              pair[slot.weight] = at(p * int8_panel + j, input);
              pair[slot.low] = static_cast<std::int8_t>(pair[slot.low] | (place & 15) << slot.low_shift);
              pair[slot.high] = static_cast<std::int8_t>(pair[slot.high] | place >> 4 << slot.high_shift);
            }
          }
        }
        if (first_inputs.size() % 2 == 1) first_inputs.push_back(0);
        starts_.data()[p * chunks + i + 1] = first_inputs.size();
      }
    }
    // Two instructions for what is one of the dense weight.
    const double lines = static_cast<double>(std::max<std::size_t>(1, panels_ * weight_.groups));
    keep(int8_steps, false, 2 * static_cast<double>(first_inputs.size()) / lines, first_inputs, values);
  }

  void keep(std::size_t height, bool whole_tiles, double density, const std::vector<std::uint16_t>& groups,
            const std::vector<std::int8_t>& values) {
    groups_ = Buffer<std::uint16_t>(groups);
    data_ = Buffer<std::int8_t>(values);
    *sparse_.data() = {height,         weight_.in_features / int8_sum_chunk + 1, whole_tiles,    density, starts_.data(),
                       groups_.data(), masks_.data(),                            data_.data()};
    weight_.data = nullptr;
    weight_.sparse = sparse_.data();
  }

  // [strips][groups]: which groups of four inputs hold a weight of a strip.
  template <class At>
  std::vector<bool> kept_groups(std::size_t strip, At at) const {
    const std::size_t out = weight_.out_features, in = weight_.in_features;
    std::vector<bool> kept(panels_ * int8_panel / strip * weight_.groups);
    for (std::size_t o = 0; o < out; ++o) {
      for (std::size_t i = 0; i < in; ++i) {
        if (at(o, i) != 0) kept[o / strip * weight_.groups + i / 4] = true;
      }
    }
    return kept;
  }

  // Where groups are kept by 16 but for 1 of 16 or fewer, those are kept too: whole tiles need no list. Whether they are.
  bool complete_tiles(std::vector<bool>& kept) const {
    std::size_t before = 0, after = 0;
    std::vector<bool> complete(kept.size());
    for (std::size_t strip = 0; strip < kept.size(); strip += weight_.groups) {
      for (std::size_t first = 0; first < weight_.groups; first += 16) {
        const auto begin = kept.begin() + static_cast<std::ptrdiff_t>(strip + first);
        const auto count = static_cast<std::ptrdiff_t>(std::min<std::size_t>(16, weight_.groups - first));
        const auto held = static_cast<std::size_t>(std::count(begin, begin + count, true));
        if (held == 0) continue;
        before += held;
        after += static_cast<std::size_t>(count);
        std::fill_n(complete.begin() + static_cast<std::ptrdiff_t>(strip + first), count, true);
      }
    }
    if (16 * before < 15 * after) return false;
    kept = complete;
    return true;
  }

  void unpack_sparse(std::int8_t* to) const {
    const int8_sparse& kept = *weight_.sparse;
    const std::size_t out = weight_.out_features, in = weight_.in_features;
    std::fill_n(to, out * in, std::int8_t{0});
    const auto put = [&](std::size_t o, std::size_t i, std::int8_t value) {
      if (o < out && i < in) to[o * in + i] = value;
    };
    const std::int8_t* value = kept.values;
    if (kept.height == int8_bitmap) {
      for (std::size_t line = 0; line < panels_ * weight_.groups * 2; ++line) {
        for (std::size_t b = 0; b < 64; ++b) {
          if (kept.masks[line] >> b & 1) {
            put((line / 2 / weight_.groups * 2 + line % 2) * 16 + b / 4, line / 2 % weight_.groups * 4 + b % 4, *value++);
          }
        }
      }
      return;
    }
    const bool steps = kept.height == int8_steps;
    const std::size_t height = steps ? int8_panel : kept.height;
    for (std::size_t s = 0; s < panels_ * int8_panel / height; ++s) {
      for (std::size_t i = 0; i < kept.chunks; ++i) {
        for (std::size_t k = kept.starts[s * kept.chunks + i]; k < kept.starts[s * kept.chunks + i + 1]; ++k) {
          const std::size_t input = i * int8_sum_chunk + kept.groups[k] * (steps ? int8_step_align : 4);
          for (std::size_t b = 0; b < height * 4; ++b) {
            if (!steps) {
              put(s * height + b / 4, input + b % 4, *value++);
              continue;
            }
            const std::int8_t* pair = kept.values + k / 2 * int8_step_pair;
            const int8_step_slot slot = step_slot(k % 2, b / 4, b % 4);
            if (pair[slot.weight] != 0) put(s * height + b / 4, input + slot.place(pair), pair[slot.weight]);
          }
        }
      }
    }
  }

  // Calls pack(o, i, line, sums) for each line that holds weights: its first output and input, and where they go.
  template <class Pack>
  void each_line(Pack pack) {
    for (std::size_t panel = 0; panel < panels_; ++panel) {
      for (std::size_t i = 0; i < weight_.in_features; i += 4) {
        std::int32_t* sums = sums_.data() + (i / int8_sum_chunk * panels_ + panel) * int8_panel;
        const std::size_t end = std::min(weight_.out_features, (panel + 1) * int8_panel);
        for (std::size_t o = panel * int8_panel; o < end; o += 16, sums += 16) pack(o, i, data_.data() + offset(o, i), sums);
      }
    }
  }

  std::size_t offset(std::size_t o, std::size_t i) const {
    const std::size_t panel = o / int8_panel, tile = o % int8_panel / 16, block = i / 64;
    const std::size_t in_block = std::min<std::size_t>(16, weight_.groups - block * 16);
    return panel * weight_.groups * 128 + block * 2048 + tile * in_block * 64 + i % 64 / 4 * 64 + o % 16 * 4 + i % 4;
  }

  // One line of 16 outputs x 4 inputs, and its share of the sums of each output.
  template <class At>
  static void pack_line(std::int8_t* line, std::int32_t* sums, std::size_t outputs, std::size_t inputs, At at) {
    if (outputs == 16 && inputs == 4) {  // constants: the compiler unrolls it
      for (std::size_t k = 0; k < 4; ++k) {
        for (std::size_t j = 0; j < 16; ++j) put(line, sums, j, k, at(j, k));
      }
      return;
    }
    for (std::size_t k = 0; k < inputs; ++k) {
      for (std::size_t j = 0; j < outputs; ++j) put(line, sums, j, k, at(j, k));
    }
  }

  static void put(std::int8_t* line, std::int32_t* sums, std::size_t j, std::size_t k, std::int8_t value) {
    line[j * 4 + k] = value;
    sums[j] += value;
  }

#if PYCOMPRESS_X86
  static void weave(const std::int8_t* from, std::size_t stride, std::int8_t* line, std::int32_t* sums) {
    __m128i row[4], half[4];
    for (std::size_t k = 0; k < 4; ++k) row[k] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k * stride));
    half[0] = _mm_unpacklo_epi8(row[0], row[1]);  // outputs 0..7, inputs 0 and 1
    half[1] = _mm_unpacklo_epi8(row[2], row[3]);
    half[2] = _mm_unpackhi_epi8(row[0], row[1]);
    half[3] = _mm_unpackhi_epi8(row[2], row[3]);
    for (std::size_t h = 0; h < 4; h += 2) {
      const __m128i quads[2] = {_mm_unpacklo_epi16(half[h], half[h + 1]), _mm_unpackhi_epi16(half[h], half[h + 1])};
      // both bytes of each word, sign-extended, added: the sum of two inputs; then of the other two
      __m128i words = _mm_setzero_si128();
      for (std::size_t p = h; p < h + 2; ++p) {
        words = _mm_add_epi16(words, _mm_add_epi16(_mm_srai_epi16(half[p], 8),
                                                   _mm_srai_epi16(_mm_slli_epi16(half[p], 8), 8)));
      }
      for (std::size_t q = 0; q < 2; ++q) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(line + h * 16 + q * 16), quads[q]);
        auto* to = reinterpret_cast<__m128i*>(sums + h * 4 + q * 4);
        const __m128i wide = q == 0 ? _mm_unpacklo_epi16(words, words) : _mm_unpackhi_epi16(words, words);
        _mm_storeu_si128(to, _mm_add_epi32(_mm_loadu_si128(to), _mm_srai_epi32(wide, 16)));
      }
    }
  }
#endif

  std::size_t panels_;
  Buffer<std::int8_t> data_;
  Buffer<std::int32_t> sums_;
  Buffer<float> scale_, bias_;
  Buffer<std::size_t> starts_;      // of a sparse weight, whose values are data_
  Buffer<std::uint16_t> groups_;
  Buffer<std::uint64_t> masks_;
  Buffer<int8_sparse> sparse_{1};
  int8_weight weight_;
};

}  // namespace pycompress
