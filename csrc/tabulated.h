// An activation that is a table: on [lower, upper] a cubic for each of some equal intervals, beyond
// on both sides the tangent at the end. f(+-inf) is what the tangent comes to, where it is flat the
// value at the end; NaN in, NaN out.
//
// Beside what crrelu_math.h asks of a vocabulary this needs
//     floor(a), and
//     V::Cubics<Real>(rows, count)  of which at(k) gives each lane the k-th of rows of
//     coefficients.
#pragma once

#include "crrelu_math.h"
#include "layout.h"

namespace crrelu {
namespace {

/// A polynomial for each lane: c[j] stands before the j-th power.
template <class V>
struct Cubic {
  V c[4];
};

/// Of the cubic with these values, and slopes by the interval, at the interval's ends.
template <class Real>
CRRELU_INLINE void set_coefficients(Real* c, double left, double right, double slope_left,
                                    double slope_right) {
  const double rise = right - left;
  c[0] = static_cast<Real>(left);
  c[1] = static_cast<Real>(slope_left);
  c[2] = static_cast<Real>(3 * rise - 2 * slope_left - slope_right);
  c[3] = static_cast<Real>(slope_left + slope_right - 2 * rise);
}

template <class V, class Real>
struct TableOf {
  V lower, upper, middle, intervals_per_unit, offset, last;
  /// The square of a distance from the middle, within which x lies between the ends for certain.
  typename V::real near_square;
  typename V::template Cubics<Real> cubics;

  explicit CRRELU_INLINE TableOf(const Real* table)
      : lower(table[kLower]),
        upper(table[kUpper]),
        middle((table[kLower] + table[kUpper]) / 2),
        intervals_per_unit(table[kPerUnit]),
        offset(-table[kLower] * table[kPerUnit]),
        last(table[kIntervals] - 1),
        near_square(square(near(table))),
        cubics(table + kTableHeader, static_cast<int>(table[kIntervals])) {}

  CRRELU_INLINE bool all_inside(V x) const {
    const V distance = x - middle;
    return all_less(distance * distance, near_square);
  }
  /// x, moved to the nearer end if it lies beyond; NaN stays.
  CRRELU_INLINE V nearest(V x) const { return max(lower, min(upper, x)); }

 private:
  static CRRELU_INLINE Real square(Real a) { return a * a; }
  /// The distance of that square. middle and offset are rounded, by what counts in a narrow table
  /// far from 0; in one that is all too narrow nothing lies within.
  static CRRELU_INLINE Real near(const Real* table) {
    constexpr Real kUlp = sizeof(Real) == 4 ? Real(0x1p-23) : Real(0x1p-52);
    const Real lower = table[kLower], upper = table[kUpper];
    const Real farthest = -lower > upper ? -lower : upper;
    const Real distance = (upper - lower) * Real(0.49999) - 4 * kUlp * farthest;
    return distance > 0 ? distance : 0;
  }
};

/// f(x), from a table (TableOf).
struct Tabulated {
  static constexpr int kInputs = 1;
  static constexpr int kNumbers = 0;
  static constexpr bool kBegins = false;
  template <class V, class Real = typename V::real>
  using Parameter = TableOf<V, Real>;

  template <Precision P, class V, class Real>
  static CRRELU_INLINE V value(const V (&x)[1], const TableOf<V, Real>& table) {
    if (table.all_inside(x[0])) return Located<V>(x[0], table, kInside).value();
    const V nearest = table.nearest(x[0]), beyond = x[0] - nearest;
    const Located<V> at(nearest, table, kAnywhere);
    const V value = at.value(), slope = at.slope() * table.intervals_per_unit;
    const auto sloping = greater(max(slope, -slope), V(0));  // elsewhere inf * 0 must not arise
    return select(sloping, fma(slope, beyond, value), value);
  }
  template <Precision P, class V, class Real>
  static CRRELU_INLINE Gradients<V, 1> gradients(V grad_output, const V (&x)[1],
                                                 const TableOf<V, Real>& table) {
    const V slope = table.all_inside(x[0])
                        ? Located<V>(x[0], table, kInside).slope()
                        : Located<V>(table.nearest(x[0]), table, kAnywhere).slope();
    return {{grad_output * (slope * table.intervals_per_unit)}, {V(0), V(0)}};
  }

 private:
  enum Where { kInside, kAnywhere };

  /// Where x lies, and the cubic there.
  template <class V>
  struct Located {
    V u;
    Cubic<V> cubic;

    template <class Real>
    CRRELU_INLINE Located(V x, const TableOf<V, Real>& table, Where where) {
      const V t = fma(x, table.intervals_per_unit, table.offset);
      V k = floor(t);
      // At the upper end, where rounding has left the table, and for NaN.
      if (where == kAnywhere) k = max(V(0), min(k, table.last));
      u = t - k;
      cubic = table.cubics.at(k);
    }
    CRRELU_INLINE V value() const {
      const V(&c)[4] = cubic.c;
      return fma(fma(fma(c[3], u, c[2]), u, c[1]), u, c[0]);
    }
    /// By u.
    CRRELU_INLINE V slope() const {
      const V(&c)[4] = cubic.c;
      return fma(fma(c[3], u * V(3), c[2] + c[2]), u, c[1]);
    }
  };
};

}  // namespace
}  // namespace crrelu
