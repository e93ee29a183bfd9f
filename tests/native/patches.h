// Problems of int8_linear whose rows are patches of images, and the convolution that they are, written down plainly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "int8_problem.h"

namespace pycompress {
namespace {

struct Side {  // height or width
  std::size_t size, kernel, stride, dilation, before, out;
};

Side side(std::size_t size, std::size_t kernel, std::size_t stride, std::size_t dilation, std::size_t before,
          std::size_t after) {
  const std::size_t window = (kernel - 1) * dilation + 1;
  return {size, kernel, stride, dilation, before, (size + before + after - window) / stride + 1};
}

// Numbers are drawn one by one: the order of a call's arguments is the compiler's choice.
Side random_side(Random& random) {
  const std::size_t kernel = 1 + random.below(5), dilation = random.one_in(2) ? 1 : 1 + random.below(3);
  const std::size_t window = (kernel - 1) * dilation + 1;
  const std::size_t before = random.below(window + 1), after = random.below(window + 1);  // whole windows of zeros too
  const std::size_t least = window > before + after ? window - before - after : 1;
  const std::size_t size = least + random.below(14), stride = 1 + random.below(3);
  return side(size, kernel, stride, dilation, before, after);
}

int8_patches patches_of(std::size_t images, std::size_t channels, const Side& y, const Side& x) {
  return {images,  y.size, x.size, channels, {y.kernel, x.kernel}, {y.stride, x.stride}, {y.dilation, x.dilation},
          y.before, x.before, y.out, x.out};
}

std::size_t patch_size(const int8_patches& p) { return p.kernel[0] * p.kernel[1] * p.channels; }
std::size_t patch_count(const int8_patches& p) { return p.images * p.out_height * p.out_width; }
std::size_t image_size(const int8_patches& p) { return p.height * p.width * p.channels; }

// Without -128, which no kernel writes but in an image that is NaN, all over; readers look at the first value alone.
void fill_int8_images(Problem& problem, Random& random) {
  const std::size_t size = image_size(*problem.patches);
  problem.q = std::make_unique<Guarded<std::int8_t>>(problem.patches->images * size);
  std::int8_t* q = problem.q->data();
  for (std::size_t n = 0; n < problem.patches->images; ++n, q += size) {
    const std::size_t kind = random.below(12);
    for (std::size_t i = 0; i < size; ++i) {
      q[i] = kind == 0 ? std::int8_t{-128} : std::max<std::int8_t>(random.byte(), -127);
    }
    if (kind == 1) q[0] = -128;
  }
}

void fill_float_images(Problem& problem, Random& random) {
  const std::size_t size = image_size(*problem.patches);
  problem.x = std::make_unique<Guarded<float>>(problem.patches->images * size);
  float* x = problem.x->data();
  for (std::size_t n = 0; n < problem.patches->images; ++n, x += size) {
    const std::size_t kind = random.below(12);
    const float magnitude = kind == 0 ? 0.0f : kind == 1 ? 0x1p-110f : kind == 2 ? 0x1p100f : 3.0f;
    for (std::size_t i = 0; i < size; ++i) x[i] = random.real() * magnitude;
    float& one = x[random.below(size)];
    if (kind == 3) one = std::numeric_limits<float>::quiet_NaN();
    if (kind == 4) one = -std::numeric_limits<float>::infinity();
    if (kind == 5) one = 1e4f;
  }
}

Problem patch_problem(Random& random, const int8_patches& patches, std::size_t out, bool int8_images,
                      Fill fill = Fill::random) {
  static const int activations[] = {0, 1, 2, 6};  // none, ReLU, GELU, ReLU6
  Problem problem;
  problem.patches = patches;
  problem.rows = patch_count(patches);
  add_layer(problem, random, out, patch_size(patches), fill, int8_images ? 0.02f : random.one_in(2) ? 0.03f : 0.0f);
  problem.activations[0] = activations[random.below(4)];
  problem.output = random.one_in(2) ? Output::f32 : Output::i8;
  if (problem.output == Output::i8) problem.output_scale = random.one_in(2) ? 0.05f : 2.0f;
  if (int8_images) {
    fill_int8_images(problem, random);
  } else {
    fill_float_images(problem, random);
  }
  return problem;
}

Problem random_patches(Random& random) {
  int8_patches patches{};
  std::size_t out = 0;
  do {
    Side y = random_side(random), x = random_side(random);
    if (random.one_in(8)) y = side(y.size, 1, 1, 1, 0, 0), x = side(x.size, 1, 1, 1, 0, 0);  // the images are rows
    const std::size_t images = random.one_in(50) ? 0 : 1 + random.below(4);
    const std::size_t channels = 1 + random.below(random.one_in(3) ? 200 : 20);
    patches = patches_of(images, channels, y, x);
    out = 1 + random.below(70);
  } while (patch_count(patches) * patch_size(patches) * out > 1500000);
  return patch_problem(random, patches, out, random.one_in(2));
}

std::vector<Problem> large_patches(Random& random) {
  std::vector<Problem> problems;
  const auto add = [&](std::size_t images, std::size_t channels, const Side& sides, std::size_t out, bool int8_images) {
    problems.push_back(patch_problem(random, patches_of(images, channels, sides, sides), out, int8_images));
  };
  for (const bool int8_images : {false, true}) {
    add(3, 200, side(10, 5, 1, 1, 2, 2), 9, int8_images);   // more rows than a level takes at a time
    add(2, 40, side(60, 3, 4, 1, 1, 1), 5, int8_images);    // images that are quantized in parts
  }
  problems.back().output = Output::f32;
  add(2, 1, side(131, 2, 1, 1, 0, 0), 32, true);  // a result that is stored past the caches
  problems.back().output = Output::f32;
  for (const std::size_t part : {0, 1, 2}) {  // NaN in each part of an image, the other one without
    add(2, 40, side(60, 3, 4, 1, 1, 1), 5, false);
    float* x = problems.back().x->data();
    std::fill_n(x, problems.back().x->size(), 0.5f);
    x[part * 65536 + random.below(10000)] = std::numeric_limits<float>::quiet_NaN();
  }
  const Side side5 = side(5, 5, 1, 1, 1, 1);  // sums beyond int32
  problems.push_back(patch_problem(random, patches_of(1, 6000, side5, side5), 3, true, Fill::least));
  std::fill_n(problems.back().q->data(), problems.back().q->size(), std::int8_t{127});
  return problems;
}

// The integers of image n and its scale, by the formula of int8_linear.h.
float plain_image(const Problem& problem, std::size_t n, std::vector<std::int8_t>& q) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const float given = problem.layers[0]->weight().input_scale;
  if (problem.q) {
    std::copy_n(problem.q->data() + n * q.size(), q.size(), q.data());
    return q[0] == -128 ? nan : given;
  }
  const float* x = problem.x->data() + n * q.size();
  float largest = 0;
  for (std::size_t i = 0; i < q.size(); ++i) {
    if (!std::isfinite(x[i])) return nan;
    largest = std::max(largest, std::fabs(x[i]));
  }
  const bool zero = given == 0 && largest < 0x1p-100f;
  const float factor = zero ? 0.0f : given != 0 ? 1.0f / given : 127.0f / largest;
  for (std::size_t i = 0; i < q.size(); ++i) {
    q[i] = static_cast<std::int8_t>(std::clamp(std::nearbyint(x[i] * factor), -127.0f, 127.0f));
  }
  return zero ? 0.0f : given != 0 ? given : largest / 127.0f;
}

float plain_activation(float y, int activation) {
  const double d = static_cast<double>(y);
  if (activation == 2) return static_cast<float>(d < -40 ? 0.0 : 0.5 * d * std::erfc(-d * std::sqrt(0.5)));
  if (activation != 0 && y < 0) return 0;
  return activation == 6 && y > 6 ? 6.0f : y;
}

// Whether `got` is y, which may be one unit in the last place off where `near`.
bool is_output(const Problem& problem, const std::uint8_t* got, float y, bool near, bool nan_image) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float low = near ? std::nextafter(y, -infinity) : y, high = near ? std::nextafter(y, infinity) : y;
  if (problem.output == Output::f32) {
    float value;
    std::memcpy(&value, got, 4);
    return std::isnan(y) ? std::isnan(value) : low <= value && value <= high;
  }
  const int value = static_cast<std::int8_t>(*got);
  if (std::isnan(y)) return value == (nan_image ? -128 : 0);
  const float factor = 1.0f / problem.output_scale;
  const auto integer = [=](float v) { return static_cast<int>(std::clamp(std::nearbyint(v * factor), -127.0f, 127.0f)); };
  return integer(low) <= value && value <= integer(high);
}

// Whether `got` is what a direct convolution gives, without any code of csrc but the layout of the weight.
bool is_the_convolution(const Problem& problem, const std::vector<std::uint8_t>& got) {
  const int8_patches& p = *problem.patches;
  const int8_weight& w = problem.layers[0]->weight();
  std::vector<std::int8_t> weight(w.out_features * w.in_features), q(image_size(p));
  problem.layers[0]->unpack(weight.data());
  const std::uint8_t* at = got.data();
  const std::size_t pixels = p.out_height * p.out_width;
  float scale = 0;
  for (std::size_t row = 0; row < problem.rows; ++row) {
    const std::size_t i = row % pixels / p.out_width, j = row % p.out_width;
    if (row % pixels == 0) scale = plain_image(problem, row / pixels, q);
    for (std::size_t o = 0; o < w.out_features; ++o, at += output_bytes(problem.output)) {
      std::int64_t sum = 0;
      for (std::size_t tap = 0; tap < p.kernel[0] * p.kernel[1]; ++tap) {
        const std::size_t y = i * p.stride[0] + tap / p.kernel[1] * p.dilation[0] - p.top;  // wraps above the image
        const std::size_t x = j * p.stride[1] + tap % p.kernel[1] * p.dilation[1] - p.left;
        if (y >= p.height || x >= p.width) continue;
        const std::int8_t* a = q.data() + (y * p.width + x) * p.channels;
        const std::int8_t* b = weight.data() + o * w.in_features + tap * p.channels;
        for (std::size_t c = 0; c < p.channels; ++c) sum += a[c] * b[c];
      }
      const float product = static_cast<float>(sum) * (scale * w.scale[o]);
      const int activation = problem.activations[0];
      const float result = plain_activation(product + w.bias[o], activation);
      if (!is_output(problem, at, result, activation == 2, std::isnan(scale))) return false;
    }
  }
  return at == got.data() + got.size();
}

}  // namespace
}  // namespace pycompress
