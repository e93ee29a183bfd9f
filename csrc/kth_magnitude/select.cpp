// The selection around the filter of a level: sample, bracket, count, select; radix when the bracket fails.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <vector>

#include "../thread_pool.h"
#include "kth_magnitude.h"

namespace pycompress {
namespace {

constexpr std::size_t piece = 32768;
constexpr std::uint32_t infinity_bits = 0x7f800000u;

std::uint32_t bits_of(float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits & 0x7fffffffu;
}

float float_of(std::uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

struct Piece {
  const float* x;
  std::size_t n;
};

std::vector<Piece> cut(const kth_magnitude_call& call) {
  std::vector<Piece> pieces;
  for (std::size_t a = 0; a < call.count; ++a) {
    for (std::size_t at = 0; at < call.sizes[a]; at += piece) {
      pieces.push_back({call.arrays[a] + at, std::min(piece, call.sizes[a] - at)});
    }
  }
  return pieces;
}

// A multiplicative generator with a fixed seed: the sample, and with it the time, is the same in every call.
struct Random {
  std::uint64_t state = 0x9e3779b97f4a7c15u;
  std::uint64_t below(std::uint64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(state) * n) >> 64);
  }
};

// Values that enclose the k-th of `total` with near certainty (6 standard deviations of the sample's rank).
void bracket(const std::vector<Piece>& pieces, std::uint64_t total, std::uint64_t k, std::uint32_t* low,
             std::uint32_t* high) {
  const std::size_t size = static_cast<std::size_t>(std::min<std::uint64_t>(65536, total / 16));
  std::vector<std::uint32_t> sample(size);
  Random random;
  for (auto& s : sample) {
    const Piece& p = pieces[random.below(pieces.size())];  // the last piece of an array may be short: a small bias
    s = bits_of(p.x[random.below(p.n)]);
  }
  const double share = static_cast<double>(k) / static_cast<double>(total), n = static_cast<double>(size);
  const double spread = 6 * std::sqrt(share * (1 - share) * n) + 2;
  const auto first = static_cast<std::ptrdiff_t>(std::floor(share * n - spread));
  const auto last = static_cast<std::ptrdiff_t>(std::ceil(share * n + spread));
  *low = 0;
  *high = 0x7fffffffu;
  if (last < static_cast<std::ptrdiff_t>(size)) {
    std::nth_element(sample.begin(), sample.begin() + last, sample.end());
    *high = sample[static_cast<std::size_t>(last)];
  }
  if (first >= 0) {
    const auto end = sample.begin() + std::min<std::ptrdiff_t>(last, static_cast<std::ptrdiff_t>(size));
    std::nth_element(sample.begin(), sample.begin() + first, end);
    *low = sample[static_cast<std::size_t>(first)];
  }
}

// Counts of the digit (bits >> shift) & mask among values whose higher bits are `prefix`.
std::vector<std::uint64_t> histogram(const std::vector<Piece>& pieces, int shift, std::uint32_t mask,
                                     std::uint32_t prefix, int prefix_shift, int threads) {
  const std::size_t bins = static_cast<std::size_t>(mask) + 1;
  std::vector<std::uint64_t> total(bins);
  std::mutex mutex;
  const std::size_t chunks = threads <= 1 ? 1 : std::min<std::size_t>(pieces.size(), static_cast<std::size_t>(threads));
  parallel_for(chunks, threads, [&](std::size_t i) {
    std::vector<std::uint64_t> counts(bins);
    for (std::size_t p = pieces.size() * i / chunks; p < pieces.size() * (i + 1) / chunks; ++p) {
      for (std::size_t j = 0; j < pieces[p].n; ++j) {
        const std::uint32_t bits = bits_of(pieces[p].x[j]);
        if (bits >> prefix_shift == prefix) ++counts[(bits >> shift) & mask];
      }
    }
    std::lock_guard<std::mutex> lock(mutex);
    for (std::size_t b = 0; b < bins; ++b) total[b] += counts[b];
  });
  return total;
}

std::uint32_t find_bin(const std::vector<std::uint64_t>& counts, std::uint64_t* k) {
  std::uint32_t bin = 0;
  while (counts[bin] < *k) *k -= counts[bin++];
  return bin;
}

float radix(const std::vector<Piece>& pieces, std::uint64_t k, int threads) {
  const std::uint32_t high = find_bin(histogram(pieces, 15, 0xffff, 0, 31, threads), &k);
  const std::uint32_t low = find_bin(histogram(pieces, 0, 0x7fff, high, 15, threads), &k);
  return float_of(high << 15 | low);
}

}  // namespace

float select_kth(const kth_magnitude_call& call, kth_filter filter) {
  const std::vector<Piece> pieces = cut(call);
  std::uint64_t total = 0;
  for (const Piece& p : pieces) total += p.n;
  std::uint32_t low = 0, high = 0x7fffffffu;
  if (total > 65536) bracket(pieces, total, call.k, &low, &high);

  const std::size_t room = static_cast<std::size_t>(std::max<std::uint64_t>(65536, total / 16));
  const std::size_t chunks = chunk_count(pieces.size(), static_cast<double>(total) * 4e-4, call.threads);
  std::vector<std::uint32_t> kept;
  std::uint64_t below = 0;
  std::uint32_t largest = 0;
  bool overflow = false;
  std::mutex mutex;
  parallel_for(chunks, call.threads, [&](std::size_t i) {
    const std::size_t first = pieces.size() * i / chunks, last = pieces.size() * (i + 1) / chunks;
    std::vector<std::uint32_t> part, buffer(piece);
    std::uint64_t part_below = 0;
    std::uint32_t part_largest = 0;
    bool part_overflow = false;
    for (std::size_t p = first; p < last; ++p) {
      const std::size_t n =
          filter(pieces[p].x, pieces[p].n, low, high, buffer.data(), piece, &part_below, &part_largest);
      part_overflow = part_overflow || part.size() + n > room;
      if (!part_overflow) part.insert(part.end(), buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(n));
    }
    std::lock_guard<std::mutex> lock(mutex);
    below += part_below;
    largest = std::max(largest, part_largest);
    overflow = overflow || part_overflow || kept.size() + part.size() > room;
    if (!overflow) kept.insert(kept.end(), part.begin(), part.end());
  });
  if (largest > infinity_bits) return std::numeric_limits<float>::quiet_NaN();
  if (overflow || call.k <= below || call.k - below > kept.size()) return radix(pieces, call.k, call.threads);
  const auto at = kept.begin() + static_cast<std::ptrdiff_t>(call.k - below - 1);
  std::nth_element(kept.begin(), at, kept.end());
  return float_of(*at);
}

}  // namespace pycompress
