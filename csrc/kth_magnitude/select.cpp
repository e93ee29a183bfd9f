// The selection around the filter of a level: sample, bracket, count, select; radix when the bracket fails.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include "../thread_pool.h"
#include "kth_magnitude.h"

namespace pycompress {
namespace {

constexpr std::size_t piece = 32768;
constexpr std::uint32_t infinity_bits = 0x7f800000u, top = 0x7fffffffu;

#include "../element.inc"

struct Piece {
  const void* x;
  Element type;
  std::size_t n;
};

const void* moved(const void* x, Element type, std::size_t n) {
  return static_cast<const char*>(x) + n * element_bytes(type);
}

std::vector<Piece> cut(const kth_magnitude_call& call) {
  std::vector<Piece> pieces;
  for (std::size_t a = 0; a < call.count; ++a) {
    for (std::size_t at = 0; at < call.sizes[a]; at += piece) {
      pieces.push_back({moved(call.arrays[a], call.types[a], at), call.types[a], std::min(piece, call.sizes[a] - at)});
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

// One element from each of `size` stretches of all elements, in their order: no worse than a plain random sample, also
// for sorted data. The places are drawn first, so that memory can be asked for ahead: 4 of 12 ms.
std::vector<std::uint32_t> drawn(const std::vector<Piece>& pieces, std::uint64_t total, std::size_t size) {
  struct Place {
    const void* x;
    Element type;
  };
  std::vector<Place> places(size);
  std::vector<std::uint32_t> sample(size);
  Random random;
  std::size_t p = 0;
  std::uint64_t before = 0, from = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const std::uint64_t to = from + total / size + (i < total % size);
    const std::uint64_t at = from + random.below(to - from);
    while (at - before >= pieces[p].n) before += pieces[p++].n;
    places[i] = {moved(pieces[p].x, pieces[p].type, at - before), pieces[p].type};
    from = to;
  }
  for (std::size_t i = 0; i < size; ++i) {
    if (i + 32 < size) __builtin_prefetch(places[i + 32].x);
    with_element(places[i].type, places[i].x, [&](const auto* x) { sample[i] = key(widen(*x)); });
  }
  return sample;
}

// Values that enclose the k-th of `total` with near certainty (5 standard deviations of the sample's rank).
void bracket(const std::vector<Piece>& pieces, std::uint64_t total, std::uint64_t k, std::uint32_t* low,
             std::uint32_t* high) {
  const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(65536, total / 16));
  std::vector<std::uint32_t> sample = drawn(pieces, total, size);
  const double share = static_cast<double>(k) / static_cast<double>(total), n = static_cast<double>(size);
  const double spread = 5 * std::sqrt(share * (1 - share) * n) + 2;
  const auto first = static_cast<std::ptrdiff_t>(std::floor(share * n - spread));
  const auto last = static_cast<std::ptrdiff_t>(std::ceil(share * n + spread));
  *low = 0;
  *high = top;
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
    std::vector<std::uint32_t> counts(2 * bins);  // neighbours count apart: equal ones would wait for each other
    for (std::size_t p = pieces.size() * i / chunks; p < pieces.size() * (i + 1) / chunks; ++p) {
      with_element(pieces[p].type, pieces[p].x, [&](const auto* x) {
        const auto count = [&](std::size_t j, std::uint32_t* of) {
          const std::uint32_t bits = key(widen(x[j]));
          if (bits >> prefix_shift == prefix) ++of[(bits >> shift) & mask];
        };
        const std::size_t n = pieces[p].n;
        for (std::size_t j = 0; j + 2 <= n; j += 2) {
          count(j, counts.data());
          count(j + 1, counts.data() + bins);
        }
        if (n % 2) count(n - 1, counts.data());
      });
      if ((p + 1) % 32768 == 0 || p + 1 == pieces.size() * (i + 1) / chunks) {  // before 32 bits could overflow
        std::lock_guard<std::mutex> lock(mutex);
        for (std::size_t b = 0; b < 2 * bins; ++b) total[b % bins] += counts[b];
        std::fill(counts.begin(), counts.end(), 0);
      }
    }
  });
  return total;
}

std::uint32_t find_bin(const std::vector<std::uint64_t>& counts, std::uint64_t* k) {
  std::uint32_t bin = 0;
  while (counts[bin] < *k) *k -= counts[bin++];
  return bin;
}

// What one pass over everything finds for a bracket [low, high].
struct Found {
  std::uint64_t below = 0, inside = 0;  // counts
  std::uint32_t largest = 0;
  bool overflow = false;  // more inside than `room`: kept is not all of them
  std::vector<std::uint32_t> kept;
};

Found filtered(const std::vector<Piece>& pieces, kth_filter filter, std::uint32_t low, std::uint32_t high,
               std::size_t room, std::size_t chunks, int threads) {
  Found found;
  std::mutex mutex;
  parallel_for(chunks, threads, [&](std::size_t i) {
    const std::size_t first = pieces.size() * i / chunks, last = pieces.size() * (i + 1) / chunks;
    std::vector<std::uint32_t> buffer(piece + 16);  // a level may store a whole vector at the end
    Found part;
    part.kept.reserve((last - first) * 512);  // a bracket of a large selection holds less than a sixtieth
    for (std::size_t p = first; p < last; ++p) {
      const std::size_t n = filter(pieces[p].x, pieces[p].type, pieces[p].n, low, high, buffer.data(),
                                   &part.below, &part.largest);
      part.inside += n;
      part.overflow = part.overflow || part.kept.size() + n > room;
      if (!part.overflow) part.kept.insert(part.kept.end(), buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(n));
    }
    std::lock_guard<std::mutex> lock(mutex);
    found.below += part.below;
    found.inside += part.inside;
    found.largest = std::max(found.largest, part.largest);
    found.overflow = found.overflow || part.overflow || found.kept.size() + part.kept.size() > room;
    if (!found.overflow && found.kept.empty()) {
      found.kept = std::move(part.kept);
    } else if (!found.overflow) {
      found.kept.insert(found.kept.end(), part.kept.begin(), part.kept.end());
    }
  });
  return found;
}

// The k-th (from 1) of what was kept in [low, high]: by a histogram of the range, then among the values of one bin. The
// standard library's selection took 5 times as long.
float nth(const std::vector<std::uint32_t>& kept, std::uint64_t k, std::uint32_t low, std::uint32_t high) {
  int shift = 0;
  while ((high - low) >> shift > 0xfff) ++shift;
  std::vector<std::uint64_t> counts(0x1000);
  for (const std::uint32_t bits : kept) ++counts[(bits - low) >> shift];
  const std::uint32_t bin = find_bin(counts, &k);
  std::vector<std::uint32_t> few;
  few.reserve(counts[bin]);
  for (const std::uint32_t bits : kept) {
    if ((bits - low) >> shift == bin) few.push_back(bits);
  }
  const auto at = few.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(few.begin(), at, few.end());
  return from_bits(*at);
}

float radix(const std::vector<Piece>& pieces, kth_filter filter, std::uint64_t k, std::size_t room, std::size_t chunks,
            int threads) {
  const std::uint32_t high = find_bin(histogram(pieces, 15, 0xffff, 0, 31, threads), &k);
  const std::uint32_t first = high << 15, last = first | 0x7fff;
  const Found found = filtered(pieces, filter, first, last, room, chunks, threads);
  if (!found.overflow) return nth(found.kept, k, first, last);
  return from_bits(first | find_bin(histogram(pieces, 0, 0x7fff, high, 15, threads), &k));
}

}  // namespace

void select_kth(const kth_magnitude_call& call, kth_filter filter) {
  const std::vector<Piece> pieces = cut(call);
  const std::uint64_t k = call.k;
  std::uint64_t total = 0;
  for (const Piece& p : pieces) total += p.n;
  std::uint32_t low = 0, high = top;
  if (total > 65536) bracket(pieces, total, k, &low, &high);

  const auto room = static_cast<std::size_t>(std::max<std::uint64_t>(65536, total / 16));
  const std::size_t chunks = chunk_count(pieces.size(), static_cast<double>(total) * 4e-4, call.threads);
  *call.way = KthWay::bracket;
  Found found = filtered(pieces, filter, low, high, room, chunks, call.threads);
  if (found.largest > infinity_bits) {
    *call.value = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const bool inside = k > found.below && k <= found.below + found.inside;
  if (inside && !found.overflow) {
    *call.value = nth(found.kept, k - found.below, low, high);
    return;
  }
  if (inside) {
    *call.way = KthWay::ties;
    const std::uint64_t up_to_high = found.below + found.inside;
    std::uint64_t up_to_low = up_to_high, below_high = up_to_high;
    if (low + 1 < high) {
      found = filtered(pieces, filter, low + 1, high - 1, room, chunks, call.threads);
      up_to_low = found.below;
      below_high = found.below + found.inside;
    } else if (low < high) {
      found = filtered(pieces, filter, high, high, 0, chunks, call.threads);
      up_to_low = below_high = found.below;
    }
    if (k <= up_to_low || k > below_high) {
      *call.value = from_bits(k <= up_to_low ? low : high);
      return;
    }
    if (!found.overflow) {
      *call.value = nth(found.kept, k - up_to_low, low, high);
      return;
    }
  }
  *call.way = KthWay::radix;
  *call.value = radix(pieces, filter, k, room, chunks, call.threads);
}

}  // namespace pycompress
