// THE formula. Every backend (scalar, AVX2, AVX-512, CUDA) instantiates this file over its own
// value type V:
//
//     f(x)        =  max(0, x) + epsilon * x * exp(-x^2/2)
//     df/dx       =  [x > 0]   + epsilon * (1 - x^2) * exp(-x^2/2)
//     df/depsilon =              x * exp(-x^2/2)
//
// The kink at 0 takes the derivative of ReLU in PyTorch, 0. The limits are f(+inf) = +inf,
// f(-inf) = 0, df/dx(+inf) = 1, df/dx(-inf) = 0, df/depsilon(+-inf) = 0, and NaN in, NaN out. A
// literal transcription makes inf * 0 = NaN of them, and early: 1 - x^2 overflows for finite x, and
// epsilon * x may overflow before the exponential brings it down. So there are two ways with the
// same bits: near 0, where every step is a normal number, the formula as it stands; and anywhere,
// with exp(-x^2/2) kept as significand * 2^exponent, products formed with the significand, and the
// power of two applied late, so that nothing overflows on the way and a subnormal is rounded once.
//
// What V provides (cpu/vec_*.h, cuda/vec_cuda.cuh): `real`, broadcast from it, + - * /, unary -,
// fma(a, b, c) = a*b + c, max and min (the second operand where one is NaN), greater(a, b),
// select(mask, a, b), all_less(a, x), false for NaN, ldexp(a, n) = a * 2^floor(n), and, for a
// vocabulary that tabulates 2^(j/k), j = 0..k-1,
//     shifter()                 which when added rounds to multiples of 1/k,
//     fraction(shifted)         of such a sum the part below 1, as if the shifter had been added,
//     exp_reduced<P>(power, shifted, r)  2^(power - shifter) * exp(-r/2) where that is a normal
//                               number, power being shifted or its fraction,
//     kMendsTwoLn2              whether that makes good what rounding took from 2 ln 2, and
//     kHasExp2                  whether there is exp2(a), and floor(a), for Precision::kHalf, which
//                               then takes none of these.
// For cpu/loops.h also
//     Powers(real c)            the tabulated c * 2^(j/k),
//     exp_reduced<P>(power, shifted, r, powers)  c times as much,
//     over_power(a, powers)     a / 2^n, both normal numbers, where 1/2 <= |c| / 2^n < 1, and
//     kManyRegisters            whether its registers hold two sets of vectors under way.
#pragma once

#if defined(__CUDACC__)
#define CRRELU_INLINE __host__ __device__ __forceinline__
#elif defined(CRRELU_EMULATED_INTRINSICS)  // tests/cpp/emulated: inlined, they take minutes
#define CRRELU_INLINE inline
#else
#define CRRELU_INLINE inline __attribute__((always_inline))
#endif

namespace crrelu {
// One copy per translation unit: code made for one machine must never be linked into another's.
namespace {

/// How many of the computation's bits a stored type can show: all, or the few of a 16-bit type.
enum class Precision { kFull, kHalf };

/// A number in two parts, the second one small: high + low.
template <class V>
struct Sum {
  V high, low;
};

/// The same as high * (1 + rest): the first to be known of the two.
template <class V>
struct Corrected {
  V high, rest;
};

template <class V>
CRRELU_INLINE Sum<V> sum(const Corrected<V>& number) {
  return {number.high, number.high * number.rest};
}
template <class V>
CRRELU_INLINE V sum(V value) {
  return value;
}

/// The number, rounded once.
template <class V>
CRRELU_INLINE V rounded(const Corrected<V>& number) {
  return fma(number.high, number.rest, number.high);
}
template <class V>
CRRELU_INLINE V rounded(V value) {
  return value;
}

template <class V>
CRRELU_INLINE V total(const Sum<V>& sum) {
  return sum.high + sum.low;
}
template <class V>
CRRELU_INLINE V total(V value) {
  return value;
}

/// a * b; of a number in two parts, with one rounding that counts.
template <class V>
CRRELU_INLINE V times(V a, const Sum<V>& b) {
  return fma(a, b.high, a * b.low);
}
template <class V>
CRRELU_INLINE V times(V a, const Corrected<V>& b) {
  return fma(a, b.high, (a * b.high) * b.rest);
}
template <class V>
CRRELU_INLINE V times(V a, V b) {
  return a * b;
}

template <Precision P, class V>
struct SignificandOf {
  using type = Corrected<V>;
};
template <class V>
struct SignificandOf<Precision::kHalf, V> {
  using type = V;
};
template <Precision P, class V>
using Significand = typename SignificandOf<P, V>::type;

template <class Real>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float kHalfLog2e = 0x1.715476p-1f;  // log2(e) / 2
  static constexpr float kTwoLn2 = 0x1.62e43p+0f;      // 2 ln 2, in two parts
  static constexpr float kTwoLn2Low = -0x1.05c61p-28f;
  // From this |x| on the bump is 0 for every finite epsilon: 2^128 * 20.5 * exp(-210) < 2^-150.
  static constexpr float kFar = 20.5f;
  // Up to this x^2 exp(-x^2/2) * 2^-53 is a normal number, so all is exact that should be.
  static constexpr float kNearSquare = 100.0f;
  // An epsilon beyond 1 is carried as epsilon * 2^-126, and one beyond 2^126 as epsilon * 2^-127,
  // with the bump as much larger: so a bump that is subnormal is not magnified, or but twice.
  static constexpr float kLargeExponent = 126.0f;
  static constexpr float kLargeScale = 0x1p-126f;
  static constexpr float kHuge = 0x1p126f;
  // The epsilons that may be multiplied into the powers: near 0 what comes of these, times the
  // least r too, is a normal number.
  static constexpr float kLeastScaled = 0x1p-20f, kMostScaled = 0x1p50f;
  // Farther out so much of an exponent goes to x: then x is normal, and the rest of the product too
  // where anything is left of it.
  static constexpr float kExponentOfX = -128.0f;
};

template <>
struct Constants<double> {
  static constexpr double kHalfLog2e = 0x1.71547652b82fep-1;
  static constexpr double kTwoLn2 = 0x1.62e42fefa39efp+0;
  static constexpr double kTwoLn2Low = 0x1.abc9e3b39803fp-55;
  static constexpr double kFar = 55.0;  // 2^1024 * 55 * exp(-1512) < 2^-1075
  static constexpr double kNearSquare = 800.0;
  static constexpr double kLargeExponent = 1022.0;
  static constexpr double kLargeScale = 0x1p-1022;
  static constexpr double kHuge = 0x1p1022;
  static constexpr double kLeastScaled = 0x1p-400, kMostScaled = 0x1p400;
  static constexpr double kExponentOfX = -1020.0;
};

/// epsilon, also as significand * 2^exponent with |significand| < 2.
template <class V>
struct Epsilon {
  V value, significand, exponent;

  Epsilon() = default;
  explicit CRRELU_INLINE Epsilon(const V (&numbers)[1]) : Epsilon(numbers[0]) {}
  explicit CRRELU_INLINE Epsilon(V epsilon) : value(epsilon) {
    using C = Constants<typename V::real>;
    const V size = max(epsilon, -epsilon);
    const auto large = greater(size, V(1)), huge = greater(size, V(C::kHuge));
    const V scale = select(huge, V(C::kLargeScale / 2), V(C::kLargeScale));
    significand = select(large, epsilon * scale, epsilon);
    exponent = select(large, select(huge, V(C::kLargeExponent + 1), V(C::kLargeExponent)), V(0));
  }
};

/// An epsilon that all elements share, multiplied once for all into the powers that exp(-x^2/2) is
/// made of: then the bump is a single product. f and df/dx are as exact, since what rounding took
/// from an entry of that table is kept, as ever; but they are rounded elsewhere, so the last bit
/// may be another. df/depsilon lacks epsilon, and is rounded once more: its power of two is taken
/// off again, and the significand, which makes no sum larger and at most halves one, when all is
/// summed.
template <class V>
struct SharedEpsilon {
  using real = typename V::real;
  typename V::Powers powers;

  explicit CRRELU_INLINE SharedEpsilon(const real (&numbers)[1]) : SharedEpsilon(numbers[0]) {}
  explicit CRRELU_INLINE SharedEpsilon(real epsilon) : powers(epsilon) {}

  /// Whether it may be made of this one.
  static CRRELU_INLINE bool takes(const real (&numbers)[1]) { return takes(numbers[0]); }
  static CRRELU_INLINE bool takes(real epsilon) {
    using C = Constants<real>;
    const real size = epsilon < 0 ? -epsilon : epsilon;
    return size >= C::kLeastScaled && size <= C::kMostScaled;
  }

  /// 1/2 to 1, or the negative.
  static CRRELU_INLINE real significand(real epsilon) {
    real lanes[V::kLanes];
    over_power(V(epsilon), SharedEpsilon(epsilon).powers).store(lanes);
    return lanes[0];
  }
};

/// exp(-x^2/2) = 2^exponent * exp(-r/2), exponent a multiple of what V tabulates, r small.
template <Precision P, class V, bool kByExp2 = V::kHasExp2 && P == Precision::kHalf>
struct Reduced {
  V shifted, exponent, r;

  explicit CRRELU_INLINE Reduced(V x) {
    using C = Constants<typename V::real>;
    const V square = x * x;
    shifted = fma(square, V(-C::kHalfLog2e), V::shifter());
    exponent = shifted - V::shifter();
    r = fma(exponent, V(C::kTwoLn2), square);
    if constexpr (P == Precision::kFull) {
      // At x^2 = 200 half an ulp of x^2 is 5e-6 of the result: carry what rounding took from x^2
      // and from 2 ln 2. Added up beside r, not one after the other: the chain is long enough.
      const V lost = fma(x, x, -square);
      r = r + (V::kMendsTwoLn2 ? lost : fma(exponent, V(C::kTwoLn2Low), lost));
    }
  }
  /// exp(-x^2/2) where that is a normal number, and 2^-exponent times as much; or so many times as
  /// the powers say.
  template <class... Powers>
  CRRELU_INLINE Significand<P, V> whole(const Powers&... powers) const {
    return V::template exp_reduced<P>(shifted, shifted, r, powers...);
  }
  template <class... Powers>
  CRRELU_INLINE Significand<P, V> significand(const Powers&... powers) const {
    return V::template exp_reduced<P>(V::fraction(shifted), shifted, r, powers...);
  }
};

/// exp(-x^2/2) = 2^power by the machine's own instruction. What rounding takes from the power is
/// 5e-6 at the most, 2 % of what a float16 shows. Near 0 exponent is 0: both ways take the same
/// power.
template <Precision P, class V>
struct Reduced<P, V, true> {
  V power, exponent;

  explicit CRRELU_INLINE Reduced(V x) {
    using C = Constants<typename V::real>;
    power = x * x * V(-C::kHalfLog2e);
    exponent = select(greater(V(-C::kHalfLog2e * C::kNearSquare), power), floor(power), V(0));
  }
  CRRELU_INLINE V whole() const { return V::exp2(power); }
  CRRELU_INLINE V significand() const { return V::exp2(power - exponent); }
};

template <class V>
CRRELU_INLINE bool all_near(V x) {
  return all_less(x * x, Constants<typename V::real>::kNearSquare);
}

/// x moved in to where the bump is not yet zero; NaN stays.
template <class V>
CRRELU_INLINE V clamp(V x) {
  using C = Constants<typename V::real>;
  return max(V(-C::kFar), min(V(C::kFar), x));
}

/// exp(-u^2/2), begun: what needs nothing but u. Of use where all u are near 0.
template <Precision P, class V>
struct Begun {
  V u;
  bool near;
  Reduced<P, V> reduced;

  explicit CRRELU_INLINE Begun(V u) : u(u), near(all_near(u)), reduced(u) {}
};

/// The function and its two derivatives at one x. What a caller does not use, the compiler drops.
template <class V>
struct Point {
  V value, slope, epsilon_slope;
};

/// By one rounding, which keeps its relative accuracy where it crosses zero.
template <class V>
CRRELU_INLINE V one_minus_square(V x) {
  return fma(-x, x, V(1));
}

/// The value and its derivatives, by x as if u were x but for a constant.
template <Precision P, class V>
CRRELU_INLINE Point<V> evaluate(V x, const Begun<P, V>& begun, const Epsilon<V>& epsilon) {
  const V relu = max(V(0), x);
  const V step = select(greater(x, V(0)), V(1), V(0));
  // One return, or gcc puts the results into memory; and the value last, or nvcc computes two of
  // the gated rows' exponentials twice for sm_100.
  V factor, in_value, in_slope, epsilon_slope;
  if (begun.near) {
    const V u = begun.u;
    const Reduced<P, V>& g = begun.reduced;
    const auto gaussian = g.whole();
    factor = epsilon.value;
    epsilon_slope = u * total(sum(gaussian));
    in_slope = times(one_minus_square(u), sum(gaussian));
    in_value = times(u, gaussian);
  } else {
    const V c = clamp(begun.u);
    const Reduced<P, V> g(c);
    const auto gaussian = g.significand();
    const V exponent = g.exponent + epsilon.exponent;
    factor = epsilon.significand;
    epsilon_slope = ldexp(c * total(sum(gaussian)), g.exponent);
    in_slope = ldexp(times(one_minus_square(c), sum(gaussian)), exponent);
    in_value = ldexp(times(c, gaussian), exponent);
  }
  return {fma(factor, in_value, relu), fma(factor, in_slope, step), epsilon_slope};
}

/// As above, but epsilon_slope is df/depsilon times epsilon's significand.
template <Precision P, class V>
CRRELU_INLINE Point<V> evaluate(V x, const Begun<P, V>& begun, const SharedEpsilon<V>& epsilon) {
  using C = Constants<typename V::real>;
  const V relu = max(V(0), x);
  const V step = select(greater(x, V(0)), V(1), V(0));
  // The bump, and what it is multiplied by: far from 0 that takes most of the bump's exponent.
  V bump, in_value, in_slope, epsilon_slope;
  if (begun.near) {
    const V u = begun.u;
    const Reduced<P, V>& g = begun.reduced;
    bump = rounded(g.whole(epsilon.powers));
    epsilon_slope = u * over_power(bump, epsilon.powers);
    in_value = u;
    in_slope = one_minus_square(u);
  } else {
    const V c = clamp(begun.u);
    const Reduced<P, V> g(c);
    const V whole = rounded(g.significand(epsilon.powers));
    const V of_x = max(g.exponent, V(C::kExponentOfX));
    bump = ldexp(whole, g.exponent - of_x);
    epsilon_slope = ldexp(c * over_power(whole, epsilon.powers), g.exponent);
    in_value = ldexp(c, of_x);
    in_slope = ldexp(one_minus_square(c), of_x);
  }
  return {fma(in_value, bump, relu), fma(in_slope, bump, step), epsilon_slope};
}

// Activations, as the loops of every backend take them: of kInputs tensors and a Parameter, the
// value, and the gradients by the chain rule. The Parameter is made of kNumbers numbers, of which
// each channel may have its own; the first, epsilon, has a gradient. Numbers that all elements
// share may make a Shared instead, if that takes them. Where kNumbers is 0, the Parameter is the
// same for all elements and made of a table. Where kBegins, the value may be had in two steps.

/// Two factors, multiplied where they are added up: with one rounding.
template <class V>
struct Product {
  V a, b;
};
template <class V>
CRRELU_INLINE V operator+(V sum, const Product<V>& term) {
  return fma(term.a, term.b, sum);
}

template <class V, int kInputs>
struct Gradients {
  V inputs[kInputs];
  Product<V> parameter;
};

/// f(x)
struct CRReLU {
  static constexpr int kInputs = 1;
  static constexpr int kNumbers = 1;
  static constexpr bool kBegins = true;
  template <class V, class Real = typename V::real>
  using Parameter = Epsilon<V>;
  template <class V>
  using Shared = SharedEpsilon<V>;

  template <Precision P, class V>
  static CRRELU_INLINE Begun<P, V> begin(const V (&x)[1]) {
    return Begun<P, V>(x[0]);
  }
  template <Precision P, class V, class AnyEpsilon>
  static CRRELU_INLINE V value(const Begun<P, V>& begun, const AnyEpsilon& epsilon) {
    return evaluate(begun.u, begun, epsilon).value;
  }
  template <Precision P, class V, class AnyEpsilon>
  static CRRELU_INLINE V value(const V (&x)[1], const AnyEpsilon& epsilon) {
    return value(begin<P>(x), epsilon);
  }
  template <Precision P, class V, class AnyEpsilon>
  static CRRELU_INLINE Gradients<V, 1> gradients(V grad_output, const V (&x)[1],
                                                 const AnyEpsilon& epsilon) {
    const auto f = evaluate(x[0], Begun<P, V>(x[0]), epsilon);
    return {{grad_output * f.slope}, {grad_output, f.epsilon_slope}};
  }
};

/// Where the bump sits: in u = (x - location) / scale its epsilon is epsilon * scale.
template <class V, class AnyEpsilon = Epsilon<V>>
struct Placed {
  AnyEpsilon epsilon, epsilon_by_scale;
  V location, scale, per_scale;

  Placed() = default;
  template <class Number>
  explicit CRRELU_INLINE Placed(const Number (&numbers)[3])
      : epsilon(numbers[0]),
        epsilon_by_scale(numbers[0] * numbers[2]),
        location(numbers[1]),
        scale(numbers[2]),
        per_scale(V(1) / scale) {}

  template <class Number>
  static CRRELU_INLINE bool takes(const Number (&numbers)[3]) {
    return AnyEpsilon::takes(numbers[0]) && AnyEpsilon::takes(numbers[0] * numbers[2]);
  }
  CRRELU_INLINE V standardized(V x) const { return (x - location) * per_scale; }
};

/// max(0, x) + epsilon * (x - location) * exp(-u^2/2)
struct CRReLUPlaced {
  static constexpr int kInputs = 1;
  static constexpr int kNumbers = 3;
  static constexpr bool kBegins = false;
  template <class V, class Real = typename V::real>
  using Parameter = Placed<V>;
  template <class V>
  using Shared = Placed<V, SharedEpsilon<V>>;

  template <Precision P, class V, class AnyEpsilon>
  static CRRELU_INLINE V value(const V (&x)[1], const Placed<V, AnyEpsilon>& at) {
    return evaluate(x[0], Begun<P, V>(at.standardized(x[0])), at.epsilon_by_scale).value;
  }
  template <Precision P, class V, class AnyEpsilon>
  static CRRELU_INLINE Gradients<V, 1> gradients(V grad_output, const V (&x)[1],
                                                 const Placed<V, AnyEpsilon>& at) {
    const auto f = evaluate(x[0], Begun<P, V>(at.standardized(x[0])), at.epsilon);
    return {{grad_output * f.slope}, {grad_output, at.scale * f.epsilon_slope}};
  }
};

/// f(gate) * up, which stands where a transformer has SwiGLU.
struct CRReLUGated : CRReLU {
  static constexpr int kInputs = 2;
  static constexpr bool kBegins = false;

  template <Precision P, class V, class AnyEpsilon>
  static CRRELU_INLINE V value(const V (&x)[2], const AnyEpsilon& epsilon) {
    return evaluate(x[0], Begun<P, V>(x[0]), epsilon).value * x[1];
  }
  template <Precision P, class V, class AnyEpsilon>
  static CRRELU_INLINE Gradients<V, 2> gradients(V grad_output, const V (&x)[2],
                                                 const AnyEpsilon& epsilon) {
    const auto f = evaluate(x[0], Begun<P, V>(x[0]), epsilon);
    const V grad_value = grad_output * x[1];
    return {{grad_value * f.slope, grad_output * f.value}, {grad_value, f.epsilon_slope}};
  }
};

}  // namespace
}  // namespace crrelu
