// Two vectors as one: every operation on both, so that the compiler lays two independent chains
// side by side.
#pragma once

#include "../crrelu_math.h"

namespace crrelu {
namespace {

template <class T>
struct PairOf {
  T a, b;
};

template <class V>
struct Pair {
  using real = typename V::real;
  using Mask = PairOf<typename V::Mask>;
  static constexpr int kLanes = 2 * V::kLanes;
  V a, b;

  Pair() = default;
  CRRELU_INLINE Pair(V a, V b) : a(a), b(b) {}
  explicit CRRELU_INLINE Pair(real x) : a(x), b(x) {}

  static CRRELU_INLINE Pair shifter() { return {V::shifter(), V::shifter()}; }
  template <Precision P>
  static CRRELU_INLINE Sum<Pair> exp_reduced(Pair shifted, Pair r) {
    const Sum<V> x = V::template exp_reduced<P>(shifted.a, r.a),
                 y = V::template exp_reduced<P>(shifted.b, r.b);
    return {{x.high, y.high}, {x.low, y.low}};
  }
  template <class S>
  static CRRELU_INLINE Pair load(const S* p) {
    return {V::load(p), V::load(p + V::kLanes)};
  }
  template <class S>
  CRRELU_INLINE void store(S* p) const {
    a.store(p);
    b.store(p + V::kLanes);
  }
  template <class S>
  CRRELU_INLINE void stream(S* p) const {
    a.stream(p);
    b.stream(p + V::kLanes);
  }
};

template <class V>
CRRELU_INLINE Pair<V> operator+(Pair<V> x, Pair<V> y) {
  return {x.a + y.a, x.b + y.b};
}
template <class V>
CRRELU_INLINE Pair<V> operator-(Pair<V> x, Pair<V> y) {
  return {x.a - y.a, x.b - y.b};
}
template <class V>
CRRELU_INLINE Pair<V> operator-(Pair<V> x) {
  return {-x.a, -x.b};
}
template <class V>
CRRELU_INLINE Pair<V> operator*(Pair<V> x, Pair<V> y) {
  return {x.a * y.a, x.b * y.b};
}
template <class V>
CRRELU_INLINE Pair<V> fma(Pair<V> x, Pair<V> y, Pair<V> z) {
  return {fma(x.a, y.a, z.a), fma(x.b, y.b, z.b)};
}
template <class V>
CRRELU_INLINE Pair<V> min(Pair<V> x, Pair<V> y) {
  return {min(x.a, y.a), min(x.b, y.b)};
}
template <class V>
CRRELU_INLINE Pair<V> max(Pair<V> x, Pair<V> y) {
  return {max(x.a, y.a), max(x.b, y.b)};
}
template <class V>
CRRELU_INLINE typename Pair<V>::Mask greater(Pair<V> x, Pair<V> y) {
  return {greater(x.a, y.a), greater(x.b, y.b)};
}
template <class V>
CRRELU_INLINE Pair<V> select(typename Pair<V>::Mask m, Pair<V> x, Pair<V> y) {
  return {select(m.a, x.a, y.a), select(m.b, x.b, y.b)};
}
template <class V>
CRRELU_INLINE Pair<V> ldexp(Pair<V> x, Pair<V> n) {
  return {ldexp(x.a, n.a), ldexp(x.b, n.b)};
}

}  // namespace
}  // namespace crrelu
