// THE formula. Every backend (scalar, AVX2, AVX-512, CUDA) instantiates this file over its own
// value type V.
//
//     f(x)      = max(0, x) + epsilon * x * exp(-x^2/2)
//     df/dx     = [x > 0]   + epsilon * (1 - x^2) * exp(-x^2/2)      (the kink at 0 takes ReLU's 0,
//     as in PyTorch) df/deps   =             x * exp(-x^2/2)
//
// Limits, which a literal transcription turns into inf * 0 = NaN:
//     f(+inf) = +inf, f(-inf) = 0, df/dx(+inf) = 1, df/dx(-inf) = 0, df/deps(+-inf) = 0; NaN in,
//     NaN out.
// They hold early, too: 1 - x^2 overflows for finite |x| > 1.8e19, and epsilon * x may overflow
// before the exponential brings it down. So exp(-x^2/2) is kept as significand * 2^exponent,
// products are formed with the significand, and the power of two comes late: nothing overflows on
// the way, and a subnormal is rounded once.
//
// What V provides (cpu/vec_*.h): `real`, broadcast from it, + - *, fma(a, b, c) = a*b + c, max and
// min (the second operand where one is NaN), greater(a, b), select(mask, a, b), ldexp(a, n) = a *
// 2^floor(n), V::shifter(), which when added rounds to the multiples of 2^-k that V tabulates, and
// V::exp_reduced<P>(shifted, r) = 2^(shifted mod 1) * exp(-r/2) as a sum of two parts, the second
// one small.
#pragma once

#if defined(__CUDACC__)
#define CRRELU_INLINE __host__ __device__ __forceinline__
#else
#define CRRELU_INLINE inline __attribute__((always_inline))
#endif

namespace crrelu {
namespace {  // one copy per translation unit: code made for one machine must never be linked into
             // another's

/// How many of the computation's bits the stored type can show: all of them, or a 16-bit type's
/// few.
enum class Precision { kFull, kHalf };

template <class Real>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float kHalfLog2e = 0x1.715476p-1f;  // log2(e) / 2
  static constexpr float kTwoLn2 = 0x1.62e43p+0f,
                         kTwoLn2Low = -0x1.05c61p-28f;  // 2 ln 2 in two parts
  // From this |x| on the bump is zero for every finite epsilon: 2^128 * 20.5 * exp(-210) < 2^-150.
  static constexpr float kFar = 20.5f;
  // An epsilon beyond 2 is carried as 2^-127 * epsilon, and the bump as 2^127 * bump: no subnormal
  // is magnified.
  static constexpr float kLargeScale = 0x1p-127f, kLargeExponent = 127.0f;
};

template <>
struct Constants<double> {
  static constexpr double kHalfLog2e = 0x1.71547652b82fep-1;
  static constexpr double kTwoLn2 = 0x1.62e42fefa39efp+0, kTwoLn2Low = 0x1.abc9e3b39803fp-55;
  static constexpr double kFar = 55.0;  // 2^1024 * 55 * exp(-1512) < 2^-1075
  static constexpr double kLargeScale = 0x1p-1023, kLargeExponent = 1023.0;
};

/// epsilon = value * 2^exponent, |value| <= 2.
template <class V>
struct Epsilon {
  V value, exponent;

  explicit CRRELU_INLINE Epsilon(V epsilon) {
    using C = Constants<typename V::real>;
    const auto large = greater(max(epsilon, -epsilon), V(2));
    value = select(large, epsilon * V(C::kLargeScale), epsilon);
    exponent = select(large, V(C::kLargeExponent), V(0));
  }
};

template <class V>
struct Sum {
  V high, low;
};

/// a * sum: for kFull with one rounding that counts, of the result.
template <Precision P, class V>
CRRELU_INLINE V times(V a, const Sum<V>& sum) {
  if constexpr (P == Precision::kFull) {
    return fma(a, sum.high, a * sum.low);
  } else {
    return a * (sum.high + sum.low);
  }
}

/// exp(-x^2/2) = significand * 2^floor(exponent); x moved in to +-kFar.
template <Precision P, class V>
struct Gaussian {
  V x, exponent;
  Sum<V> significand;

  explicit CRRELU_INLINE Gaussian(V argument) {
    using C = Constants<typename V::real>;
    x = max(V(-C::kFar), min(V(C::kFar), argument));
    const V square = x * x;
    const V shifted = fma(square, V(-C::kHalfLog2e), V::shifter());
    exponent = shifted - V::shifter();
    V r = fma(exponent, V(C::kTwoLn2), square);
    if constexpr (P == Precision::kFull) {
      // At x^2 = 200 half an ulp of x^2 is 5e-6 of the result: carry what rounding took from x^2
      // and from 2 ln 2.
      r = fma(exponent, V(C::kTwoLn2Low), r) + fma(x, x, -square);
    }
    significand = V::template exp_reduced<P>(shifted, r);
  }
};

struct CRReLU {
  template <class V>
  using Parameter = Epsilon<V>;

  template <class V>
  struct Slopes {
    V input, parameter;
  };

  template <Precision P, class V>
  static CRRELU_INLINE V value(V x, const Epsilon<V>& epsilon) {
    const Gaussian<P, V> g(x);
    const V bump = times<P>(g.x, g.significand);
    return fma(epsilon.value, ldexp(bump, g.exponent + epsilon.exponent), max(V(0), x));
  }

  template <Precision P, class V>
  static CRRELU_INLINE Slopes<V> slopes(V x, const Epsilon<V>& epsilon) {
    const Gaussian<P, V> g(x);
    const V bump = times<Precision::kHalf>(g.x, g.significand);
    // 1 - x^2 by one rounding keeps its relative accuracy where it crosses zero.
    const V bump_slope = times<P>(fma(-g.x, g.x, V(1)), g.significand);
    const V step = select(greater(x, V(0)), V(1), V(0));
    return {fma(epsilon.value, ldexp(bump_slope, g.exponent + epsilon.exponent), step),
            ldexp(bump, g.exponent)};
  }
};

}  // namespace
}  // namespace crrelu
