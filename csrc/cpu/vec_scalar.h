// The vocabulary in plain C++: a vector of one lane. All types are computed in double: that needs
// neither a fused multiply-add nor a second part of x^2 for float and the 16-bit types, and is
// exact enough to be rounded once.
#pragma once

#include <cmath>
#include <cstring>

#include "../tabulated.h"
#include "storage.h"

namespace crrelu {
namespace {

template <class To, class From>
CRRELU_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

struct Float64x1 {
  using real = double;
  using Mask = bool;
  static constexpr int kLanes = 1;
  static constexpr bool kMendsTwoLn2 = false;
  static constexpr bool kHasExp2 = false;
  static constexpr bool kManyRegisters = false;
  double v;

  Float64x1() = default;
  explicit CRRELU_INLINE Float64x1(double v) : v(v) {}

  static CRRELU_INLINE Float64x1 shifter() { return Float64x1(0x1.8p52); }
  static CRRELU_INLINE Float64x1 fraction(Float64x1) { return Float64x1(0); }
  struct Powers {  // no table of them: c alone, and what its exponent's bits are above those of 1/2
    double c;
    uint64_t exponent;
    CRRELU_INLINE Powers() : c(1), exponent(0) {}
    explicit CRRELU_INLINE Powers(double c)
        : c(c), exponent((bit_cast<uint64_t>(c) & kExponent) - bit_cast<uint64_t>(0.5)) {}

   private:
    static constexpr uint64_t kExponent = 0x7ff0000000000000;
  };
  template <Precision P>
  static CRRELU_INLINE Significand<P, Float64x1> exp_reduced(Float64x1 power, Float64x1 shifted,
                                                             Float64x1 r,
                                                             const Powers& powers = Powers());

  template <class Real>
  struct Cubics {
    const Real* rows;
    CRRELU_INLINE Cubics(const Real* rows, int) : rows(rows) {}
    CRRELU_INLINE Cubic<Float64x1> at(Float64x1 k) const {
      const Real* c = rows + 4 * static_cast<int64_t>(k.v);
      return {{Float64x1(c[0]), Float64x1(c[1]), Float64x1(c[2]), Float64x1(c[3])}};
    }
  };

  static CRRELU_INLINE Float64x1 load(const double* p) { return Float64x1(*p); }
  static CRRELU_INLINE Float64x1 load(const float* p) { return Float64x1(*p); }
  static CRRELU_INLINE Float64x1 load(const BFloat16* p) {
    return Float64x1(bit_cast<float>(static_cast<uint32_t>(p->bits) << 16));
  }
  static CRRELU_INLINE Float64x1 load(const Half* p) {
    const uint32_t magnitude = p->bits & 0x7fff, sign = (p->bits & 0x8000u) << 16;
    if (magnitude >= 0x7c00) {  // inf, NaN
      return Float64x1(bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13));
    }
    // The same digits read as a float stand 2^112 lower; so do those of subnormals.
    return Float64x1(bit_cast<float>(sign | magnitude << 13) * 0x1p112f);
  }

  CRRELU_INLINE void store(double* p) const { *p = v; }
  CRRELU_INLINE void store(float* p) const { *p = static_cast<float>(v); }
  CRRELU_INLINE void store(BFloat16* p) const {
    const uint32_t bits = bit_cast<uint32_t>(static_cast<float>(v));
    p->bits = v != v ? 0x7fc0 : static_cast<uint16_t>((bits + 0x8000) >> 16);
  }
  CRRELU_INLINE void store(Half* p) const {
    const float value = static_cast<float>(v);
    const uint32_t bits = bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffff;
    uint32_t result;
    if (magnitude > 0x7f800000) {
      result = 0x7e00;
    } else if (magnitude >= 0x477ff000) {  // 65520 and beyond round to inf
      result = 0x7c00;
    } else if (magnitude <
               0x38800000) {  // below 2^-14: adding 0.5 rounds to the subnormals' spacing
      result = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
    } else {
      result = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    }
    p->bits = static_cast<uint16_t>(bits >> 16 & 0x8000) | static_cast<uint16_t>(result);
  }
  static CRRELU_INLINE void stream_fence() {}
  template <class S>
  CRRELU_INLINE void stream(S* p) const {
    store(p);
  }
  // One lane leaves no tail; the loops still name it.
  template <class S>
  static CRRELU_INLINE Float64x1 load(const S* p, int) {
    return load(p);
  }
  template <class S>
  CRRELU_INLINE void store(S* p, int) const {
    store(p);
  }
};

CRRELU_INLINE Float64x1 operator+(Float64x1 a, Float64x1 b) { return Float64x1(a.v + b.v); }
CRRELU_INLINE Float64x1 operator-(Float64x1 a, Float64x1 b) { return Float64x1(a.v - b.v); }
CRRELU_INLINE Float64x1 operator-(Float64x1 a) { return Float64x1(-a.v); }
CRRELU_INLINE Float64x1 operator*(Float64x1 a, Float64x1 b) { return Float64x1(a.v * b.v); }
CRRELU_INLINE Float64x1 operator/(Float64x1 a, Float64x1 b) { return Float64x1(a.v / b.v); }
CRRELU_INLINE Float64x1 fma(Float64x1 a, Float64x1 b, Float64x1 c) {
  return Float64x1(std::fma(a.v, b.v, c.v));
}
CRRELU_INLINE Float64x1 min(Float64x1 a, Float64x1 b) { return a.v < b.v ? a : b; }
CRRELU_INLINE Float64x1 max(Float64x1 a, Float64x1 b) { return a.v > b.v ? a : b; }
CRRELU_INLINE Float64x1 max_bits(Float64x1 a, Float64x1 b) {
  return a.v > b.v || std::isnan(a.v) ? a : b;
}
CRRELU_INLINE bool all_less(Float64x1 a, double limit) { return a.v < limit; }
CRRELU_INLINE bool greater(Float64x1 a, Float64x1 b) { return a.v > b.v; }
CRRELU_INLINE Float64x1 select(bool m, Float64x1 a, Float64x1 b) { return m ? a : b; }

CRRELU_INLINE Float64x1 floor(Float64x1 a) { return Float64x1(std::floor(a.v)); }

/// In two factors, so that a result may be subnormal; below 2^-2044 nothing is left of a.
CRRELU_INLINE Float64x1 ldexp(Float64x1 a, Float64x1 n) {
  const int64_t whole = static_cast<int64_t>(max(n, Float64x1(-2044)).v), half = whole / 2;
  return Float64x1(a.v * bit_cast<double>((half + 1023) << 52) *
                   bit_cast<double>((whole - half + 1023) << 52));
}

CRRELU_INLINE Float64x1 over_power(Float64x1 a, const Float64x1::Powers& powers) {
  return Float64x1(bit_cast<double>(bit_cast<uint64_t>(a.v) - powers.exponent));
}

template <Precision P>
CRRELU_INLINE Significand<P, Float64x1> Float64x1::exp_reduced(Float64x1 power, Float64x1,
                                                               Float64x1 reduced,
                                                               const Powers& powers) {
  const double high =
      bit_cast<double>(bit_cast<uint64_t>(powers.c) + (bit_cast<uint64_t>(power.v) << 52));
  const double r = reduced.v;  // |r| <= ln 2
  double p;
  if constexpr (P == Precision::kHalf) {  // relative error 1.1e-10
    p = -0x1.a15179d80ae96p-20;
    p = p * r + 0x1.6d7543e4127b8p-16;
    p = p * r - 0x1.1110c632a3088p-12;
    p = p * r + 0x1.5554accfdb593p-9;
    p = p * r - 0x1.55555567532adp-6;
    p = p * r + 0x1.000000287f871p-3;
    return Float64x1(high + high * r * (p * r - 0.5));
  } else {  // 9.9e-18
    p = -0x1.af4de97ca4194p-37;
    p = p * r + 0x1.28a2ca617b969p-32;
    p = p * r - 0x1.71de0231960ebp-28;
    p = p * r + 0x1.a019a6611cad5p-24;
    p = p * r - 0x1.a01a01abe7fe1p-20;
    p = p * r + 0x1.6c16c17f46982p-16;
    p = p * r - 0x1.11111111100dcp-12;
    p = p * r + 0x1.55555555520a4p-9;
    p = p * r - 0x1.5555555555557p-6;
    p = p * r + 0x1.0000000000005p-3;
    return {Float64x1(high), Float64x1(r * (p * r - 0.5) + 0.0)};  // never -0: f(-0) is -0 so
  }
}

}  // namespace
}  // namespace crrelu
