// Two vectors as one: every operation on both, so that the compiler lays two independent chains
// side by side.
#pragma once

#include "../tabulated.h"

namespace crrelu {
namespace {

template <class T>
struct PairOf {
  T a, b;
};

template <class V>
struct Pair;

/// Two vectors' worth of elements to and from memory in whatever order of lanes is cheapest, the
/// same both ways. A vocabulary may know a better one for a stored type.
template <class V, class S>
struct AnyOrder {
  static CRRELU_INLINE Pair<V> load(const S* p) { return Pair<V>::load(p); }
  static CRRELU_INLINE void store(Pair<V> x, S* p) { x.store(p); }
  static CRRELU_INLINE void stream(Pair<V> x, S* p) {
    x.a.stream(p);
    x.b.stream(p + V::kLanes);
  }
};
template <class V, class S>
struct AnyOrder<Pair<V>, S> {
  using Half = AnyOrder<V, S>;
  static CRRELU_INLINE Pair<Pair<V>> load(const S* p) {
    return {Half::load(p), Half::load(p + Pair<V>::kLanes)};
  }
  static CRRELU_INLINE void store(Pair<Pair<V>> x, S* p) {
    Half::store(x.a, p);
    Half::store(x.b, p + Pair<V>::kLanes);
  }
  static CRRELU_INLINE void stream(Pair<Pair<V>> x, S* p) {
    Half::stream(x.a, p);
    Half::stream(x.b, p + Pair<V>::kLanes);
  }
};

template <class V>
struct Pair {
  using Half = V;
  using real = typename V::real;
  using Mask = PairOf<typename V::Mask>;
  static constexpr int kLanes = 2 * V::kLanes;
  static constexpr bool kMendsTwoLn2 = V::kMendsTwoLn2;
  static constexpr bool kHasExp2 = V::kHasExp2;
  using Powers = typename V::Powers;
  V a, b;

  Pair() = default;
  CRRELU_INLINE Pair(V a, V b) : a(a), b(b) {}
  explicit CRRELU_INLINE Pair(real x) : a(x), b(x) {}

  static CRRELU_INLINE Pair shifter() { return {V::shifter(), V::shifter()}; }
  static CRRELU_INLINE Pair fraction(Pair x) { return {V::fraction(x.a), V::fraction(x.b)}; }
  static CRRELU_INLINE Pair exp2(Pair x) { return {V::exp2(x.a), V::exp2(x.b)}; }
  template <Precision P>
  static CRRELU_INLINE auto exp_reduced(Pair power, Pair shifted, Pair r) {
    return pair(V::template exp_reduced<P>(power.a, shifted.a, r.a),
                V::template exp_reduced<P>(power.b, shifted.b, r.b));
  }
  template <Precision P>
  static CRRELU_INLINE auto exp_reduced(Pair power, Pair shifted, Pair r, const Powers& powers) {
    return pair(V::template exp_reduced<P>(power.a, shifted.a, r.a, powers),
                V::template exp_reduced<P>(power.b, shifted.b, r.b, powers));
  }
  template <class Real>
  struct Cubics {
    typename V::template Cubics<Real> cubics;
    CRRELU_INLINE Cubics(const Real* rows, int count) : cubics(rows, count) {}
    CRRELU_INLINE Cubic<Pair> at(Pair k) const {
      const Cubic<V> a = cubics.at(k.a), b = cubics.at(k.b);
      return {{{a.c[0], b.c[0]}, {a.c[1], b.c[1]}, {a.c[2], b.c[2]}, {a.c[3], b.c[3]}}};
    }
  };
  template <class S>
  static CRRELU_INLINE Pair load(const S* p) {
    return {V::load(p), V::load(p + V::kLanes)};
  }
  template <class S>
  CRRELU_INLINE void store(S* p) const {
    a.store(p);
    b.store(p + V::kLanes);
  }

 private:
  static CRRELU_INLINE Pair pair(V a, V b) { return {a, b}; }
  static CRRELU_INLINE Corrected<Pair> pair(Corrected<V> a, Corrected<V> b) {
    return {{a.high, b.high}, {a.rest, b.rest}};
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
CRRELU_INLINE Pair<V> operator/(Pair<V> x, Pair<V> y) {
  return {x.a / y.a, x.b / y.b};
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
CRRELU_INLINE Pair<V> max_bits(Pair<V> x, Pair<V> y) {
  return {max_bits(x.a, y.a), max_bits(x.b, y.b)};
}
template <class V>
CRRELU_INLINE bool all_less(Pair<V> x, typename V::real limit) {
  return all_less(max_bits(x.a, x.b), limit);
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
CRRELU_INLINE Pair<V> floor(Pair<V> x) {
  return {floor(x.a), floor(x.b)};
}
template <class V>
CRRELU_INLINE Pair<V> over_power(Pair<V> x, const typename V::Powers& powers) {
  return {over_power(x.a, powers), over_power(x.b, powers)};
}
template <class V>
CRRELU_INLINE Pair<V> ldexp(Pair<V> x, Pair<V> n) {
  return {ldexp(x.a, n.a), ldexp(x.b, n.b)};
}

}  // namespace
}  // namespace crrelu
