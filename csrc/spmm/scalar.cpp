// spmm for any CPU. Multiply and add are rounded apart: a fused one would be a library call.
#include "../isa.h"
#include "../thread_pool.h"
#include "spmm.h"

namespace pycompress {
namespace {

template <class T>
struct One {
  using V = T;
  using M = std::size_t;
  static constexpr std::size_t lanes = 1;
  static M part(std::size_t n) { return n; }
  static V load(const T* p) { return *p; }
  static V load(const T* p, M) { return *p; }
  static void store(T* p, V v) { *p = v; }
  static void store(T* p, V v, M) { *p = v; }
  static V set1(T v) { return v; }
  static V fma(V a, V b, V c) { return a * b + c; }
};

template <class T>
struct Wide {
  using M = std::size_t;
  static constexpr std::size_t lanes = 16 / sizeof(T);
  struct V {
    T lane[lanes];
  };
  static M part(std::size_t n) { return n; }
  static V load(const T* p) { return load(p, lanes); }
  static V load(const T* p, M n) {
    V v{};
    for (std::size_t i = 0; i < n; ++i) v.lane[i] = p[i];
    return v;
  }
  static void store(T* p, const V& v) { store(p, v, lanes); }
  static void store(T* p, const V& v, M n) {
    for (std::size_t i = 0; i < n; ++i) p[i] = v.lane[i];
  }
  static V set1(T value) {
    V v;
    for (std::size_t i = 0; i < lanes; ++i) v.lane[i] = value;
    return v;
  }
  static V fma(const V& a, const V& b, const V& c) {
    V v;
    for (std::size_t i = 0; i < lanes; ++i) v.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
    return v;
  }
};

template <class T>
struct Column {
  struct V {
    T lane[spmm_group];
  };
  static V zero() { return V{}; }
  template <class Index>
  static V add(V sum, const T* v, const Index* i, const T* b) {
    for (std::size_t o = 0; o < spmm_group; ++o) sum.lane[o] = v[o] * b[i[o]] + sum.lane[o];
    return sum;
  }
  static void store(T* p, const V& v) {
    for (std::size_t o = 0; o < spmm_group; ++o) p[o] = v.lane[o];
  }
};

constexpr double entry_us = 4e-3;

#include "loop.inc"

}  // namespace

void spmm_scalar(const spmm_call& call) { run(call); }

}  // namespace pycompress
