// scores for any CPU: plain loops over 16 doubles.
#include <type_traits>

#include "../isa.h"
#include "../thread_pool.h"
#include "scores.h"

namespace pycompress {
namespace {

#include "../element.inc"

struct Lanes {
  double v[16];
};

inline Lanes zeros() { return {}; }
template <class T>
Lanes load(const T* x) {
  Lanes a;
  for (int i = 0; i < 16; ++i) a.v[i] = static_cast<double>(widen(x[i]));
  return a;
}
inline Lanes load(const double* x) {
  Lanes a;
  __builtin_memcpy(a.v, x, sizeof a.v);
  return a;
}
inline void store(double* x, const Lanes& a) { __builtin_memcpy(x, a.v, sizeof a.v); }
inline Lanes magnitude(Lanes a) {
  for (double& v : a.v) v = __builtin_fabs(v);
  return a;
}
inline Lanes multiply(Lanes a, const Lanes& b) {
  for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
  return a;
}
inline Lanes add(Lanes a, const Lanes& b) {
  for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
  return a;
}

#include "loop.inc"

}  // namespace

void scores_scalar(const scores_call& call) { run(call); }

}  // namespace pycompress
