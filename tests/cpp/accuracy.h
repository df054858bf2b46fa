// How far the kernels' results are from the formula, which is evaluated here by libm in wider
// arithmetic and shares no code with them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.h"

namespace crrelu {

/// A stored type S: its place in the kernels' tables, its name in PyTorch, its format, and Wide, in
/// which the formula is evaluated for it.
template <class S>
struct Stored;
template <>
struct Stored<float> {
  static constexpr Storage kStorage = Storage::kFloat;
  static constexpr const char* kName = "float32";
  static constexpr int kFractionBits = 23, kLowestExponent = -126;
  using Wide = double;
};
template <>
struct Stored<double> {
  static constexpr Storage kStorage = Storage::kDouble;
  static constexpr const char* kName = "float64";
  static constexpr int kFractionBits = 52, kLowestExponent = -1022;
  using Wide = long double;
};
template <>
struct Stored<BFloat16> {
  static constexpr Storage kStorage = Storage::kBFloat16;
  static constexpr const char* kName = "bfloat16";
  static constexpr int kFractionBits = 7, kLowestExponent = -126;
  using Wide = double;
};
template <>
struct Stored<Half> {
  static constexpr Storage kStorage = Storage::kHalf;
  static constexpr const char* kName = "float16";
  static constexpr int kFractionBits = 10, kLowestExponent = -14;
  using Wide = double;
};

template <class S>
using Wide = typename Stored<S>::Wide;
template <class S>
using Real = typename Arithmetic<S>::type;
template <class S>
constexpr bool kIs16Bit = sizeof(S) == 2;

/// The numbers of a 16-bit type in their order: 0 is zero, 1 the smallest positive number, -1 its
/// negative, and so on to infinity; NaN lies behind.
template <class S>
struct Ordinal {
  static constexpr int kFractionBits = Stored<S>::kFractionBits;
  static constexpr int kLowestExponent = Stored<S>::kLowestExponent;
  static constexpr int kInfinity = 0x7fff >> kFractionBits << kFractionBits;
  static constexpr int kNaN = 0x7fff;

  static int of(S x) { return x.bits & 0x8000 ? -(x.bits & 0x7fff) : x.bits; }

  static S number(int ordinal) {
    return {static_cast<uint16_t>(ordinal < 0 ? 0x8000 - ordinal : ordinal)};
  }

  static double value(int ordinal) {
    const int magnitude = std::abs(ordinal), exponent = magnitude >> kFractionBits;
    if (magnitude > kInfinity) return NAN;
    if (magnitude == kInfinity) return ordinal < 0 ? -INFINITY : INFINITY;
    const int fraction = magnitude - (exponent << kFractionBits);
    const int significand = exponent ? (1 << kFractionBits) + fraction : fraction;
    return std::ldexp(ordinal < 0 ? -significand : significand,
                      kLowestExponent - kFractionBits + std::max(exponent - 1, 0));
  }

  /// That of the number nearest to x, ties to even.
  static int nearest(double x) {
    if (std::isnan(x)) return kNaN;
    const int exponent = std::max(std::ilogb(x), kLowestExponent);
    if (exponent > -kLowestExponent + 1) return x < 0 ? -kInfinity : kInfinity;
    // From 2^exponent to its double, numbers are 2^(exponent - kFractionBits) apart.
    const int steps = std::nearbyint(std::ldexp(std::abs(x), kFractionBits - exponent));
    const int ordinal =
        std::min(((exponent - kLowestExponent) << kFractionBits) + steps, kInfinity);
    return x < 0 ? -ordinal : ordinal;
  }
};

template <class S>
Wide<S> widen(S x) {
  if constexpr (kIs16Bit<S>) {
    return Ordinal<S>::value(Ordinal<S>::of(x));
  } else {
    return x;
  }
}

/// The stored number nearest to x.
template <class S>
S rounded(double x) {
  if constexpr (kIs16Bit<S>) {
    return Ordinal<S>::number(Ordinal<S>::nearest(x));
  } else {
    return static_cast<S>(x);
  }
}

/// 2^floor(log2(x)) for x >= 0; of 0 and subnormal numbers, 0.
inline double power_of_two_below(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  bits &= uint64_t{0x7ff} << 52;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline long double power_of_two_below(long double x) { return std::ldexp(1.0L, std::ilogb(x)); }

/// The unit in the last place of numbers of type S as large as x >= 0.
template <class S>
Wide<S> ulp(Wide<S> x) {
  const Wide<S> lowest = std::ldexp(Wide<S>(1), Stored<S>::kLowestExponent);
  return std::max(power_of_two_below(x), lowest) *
         std::ldexp(Wide<S>(1), -Stored<S>::kFractionBits);
}

/// exp(-x^2/2)
inline double gaussian(double x) { return std::exp(x * x * -0.5); }  // of a float x^2 is exact
inline long double gaussian(long double x) {
  if (std::isinf(x)) return 0;
  const long double square = x * x, rounded_off = std::fma(x, x, -square);
  return std::exp(square * -0.5L) * (1 - rounded_off * 0.5L);
}

/// Arguments, and what the formula needs of them beside epsilon: f = relu + epsilon bump, f' = step
/// + epsilon bump_slope, df/depsilon = bump.
template <class S>
struct Oracle {
  std::vector<S> x;
  std::vector<Wide<S>> relu, step, bump, bump_slope;

  void add(S argument) {
    const Wide<S> wide = widen(argument), g = gaussian(wide);
    x.push_back(argument);
    relu.push_back(wide > 0 ? wide : 0);
    step.push_back(wide > 0);
    bump.push_back(g == 0 ? 0 : wide * g);
    bump_slope.push_back(g == 0 ? 0 : (1 - wide) * (1 + wide) * g);
  }

  /// Of a 16-bit type.
  static Oracle all() {
    Oracle oracle;
    for (int bits = 0; bits < 0x10000; ++bits) oracle.add({static_cast<uint16_t>(bits)});
    return oracle;
  }

  /// Changes the sign of arguments that are positive: the bump is odd.
  void reflect() {
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = -x[i];
      bump[i] = -bump[i];
    }
    std::fill(relu.begin(), relu.end(), 0);
    std::fill(step.begin(), step.end(), 0);
  }
};

/// The error of a result whose exact value is first + second. Of float32 and float64: in units in
/// the last place of the larger term. Of 16-bit types: how many numbers lie from the correctly
/// rounded one to it.
template <class S>
double error_of(S result, Wide<S> first, Wide<S> second) {
  const Wide<S> exact = first + second, given = widen(result);
  if (given == exact) return 0;
  if (std::isnan(given) || std::isnan(exact)) {
    return std::isnan(given) && std::isnan(exact) ? 0 : INFINITY;
  }
  if constexpr (kIs16Bit<S>) {
    return std::abs(Ordinal<S>::of(result) - Ordinal<S>::nearest(exact));
  } else {
    const auto larger = std::max(std::abs(first), std::abs(second));
    return static_cast<double>(std::abs(given - exact) / ulp<S>(larger));
  }
}

/// The kernels of CRReLU for one stored type, called with its one input and epsilon as the only one
/// of the tensor or as one of many.
class PlainKernels {
 public:
  PlainKernels(const Kernels& kernels, bool only) : kernels_(kernels), only_(only) {}

  void forward(const void* x, const void* epsilon, void* y, int64_t numel, bool stream) const {
    kernels_.forward(&x, &epsilon, y, numel, stream, only_);
  }
  void forward_rows(const void* x, const void* epsilon, void* y, int64_t rows, int64_t columns,
                    int64_t stride) const {
    kernels_.forward_rows(&x, &epsilon, y, rows, columns, stride);
  }
  void backward(const void* g, const void* x, const void* epsilon, void* gx, double* sum,
                int64_t numel, bool stream) const {
    kernels_.backward(g, &x, &epsilon, &gx, sum, numel, stream, only_);
  }
  void backward_rows(const void* g, const void* x, const void* epsilon, void* gx, double* sums,
                     int64_t rows, int64_t columns, int64_t stride) const {
    kernels_.backward_rows(g, &x, &epsilon, &gx, sums, rows, columns, stride);
  }

  /// Each element's term of epsilon's gradient, for grad_output of ones: an only epsilon's from a
  /// call for each, those of many as the sums of a row of so many columns.
  template <class S>
  std::vector<double> epsilon_slopes(const std::vector<S>& x, Real<S> epsilon) const {
    const int64_t numel = x.size();
    const std::vector<S> ones(numel, rounded<S>(1));
    std::vector<double> sums(numel);
    if (only_) {
      for (int64_t i = 0; i < numel; ++i)
        backward(&ones[i], &x[i], &epsilon, nullptr, &sums[i], 1, false);
    } else {
      const std::vector<Real<S>> epsilons(numel, epsilon);
      backward_rows(ones.data(), x.data(), epsilons.data(), nullptr, sums.data(), 1, numel, numel);
    }
    return sums;
  }

 private:
  const Kernels& kernels_;
  bool only_;
};

template <class S>
PlainKernels plain_kernels(const InstructionSet& isa, bool only) {
  return {isa.kernels(Activation::kPlain)[static_cast<int>(Stored<S>::kStorage)], only};
}

/// f, df/dx and df/depsilon as the kernels compute them, element by element.
template <class S>
struct Results {
  std::vector<S> value, slope, epsilon_slope;

  Results(const PlainKernels& kernels, const std::vector<S>& x, Real<S> epsilon)
      : value(x.size()), slope(x.size()), epsilon_slope(x.size()) {
    const int64_t numel = x.size();
    const std::vector<S> ones(numel, rounded<S>(1));
    kernels.forward(x.data(), &epsilon, value.data(), numel, false);
    kernels.backward(ones.data(), x.data(), &epsilon, slope.data(), nullptr, numel, false);
    const std::vector<double> sums = kernels.epsilon_slopes(x, epsilon);
    std::transform(sums.begin(), sums.end(), epsilon_slope.begin(), rounded<S>);
  }
};

/// The largest error and where it was found.
struct Worst {
  double error = 0, x = 0;

  void update(const Worst& other) {
    if (other.error > error) *this = other;
  }

  /// By results whose exact values are first(i) + second(i).
  template <class S, class First, class Second>
  void update(const std::vector<S>& x, const std::vector<S>& results, First first, Second second) {
    if constexpr (std::is_same_v<S, float>) {
      // Nearly always nothing is worse: this loop, of which the compiler makes vectors, says so.
      bool worse = false;
      for (size_t i = 0; i < x.size(); ++i) {
        const double a = first(i), b = second(i), larger = std::max(std::abs(a), std::abs(b));
        worse |= !(std::abs(results[i] - (a + b)) <= error * ulp<S>(larger));
      }
      if (!worse) return;
    }
    for (size_t i = 0; i < x.size(); ++i) {
      update({error_of<S>(results[i], first(i), second(i)), static_cast<double>(widen(x[i]))});
    }
  }
};

/// Of f, df/dx and df/depsilon.
struct Errors {
  Worst value, slope, epsilon_slope;

  void update(const Errors& other) {
    value.update(other.value);
    slope.update(other.slope);
    epsilon_slope.update(other.epsilon_slope);
  }

  /// By the kernels' results at the oracle's arguments.
  template <class S>
  void update(const PlainKernels& kernels, const Oracle<S>& oracle, Real<S> epsilon) {
    const Results<S> results(kernels, oracle.x, epsilon);
    const Wide<S> e = epsilon;
    const auto zero = [](size_t) { return Wide<S>(0); };
    const auto relu = [&](size_t i) { return oracle.relu[i]; };
    const auto step = [&](size_t i) { return oracle.step[i]; };
    const auto bump = [&](size_t i) { return oracle.bump[i]; };
    const auto scaled_bump = [&](size_t i) { return e * oracle.bump[i]; };
    const auto scaled_bump_slope = [&](size_t i) { return e * oracle.bump_slope[i]; };
    value.update(oracle.x, results.value, relu, scaled_bump);
    slope.update(oracle.x, results.slope, step, scaled_bump_slope);
    epsilon_slope.update(oracle.x, results.epsilon_slope, zero, bump);
  }

  /// What is promised, in the units of error_of(). Nobody can try all of float64: it is given room.
  template <class S>
  bool within_bounds() const {
    constexpr double value_bound = kIs16Bit<S> ? 1 : sizeof(S) == 4 ? 2 : 2.5;
    constexpr double slope_bound = kIs16Bit<S> ? 1 : 3;
    return value.error <= value_bound && slope.error <= slope_bound &&
           epsilon_slope.error <= slope_bound;
  }
};

}  // namespace crrelu
