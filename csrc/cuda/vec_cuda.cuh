// The vocabulary (see crrelu_math.h) of one thread's one lane; a pack of elements is several of
// them in lockstep, as Pair. For double there is nothing better than plain C++: Float64x1.
#pragma once

#include "../cpu/pair.h"
#include "../cpu/vec_scalar.h"
#include "machine.cuh"

namespace crrelu {
namespace {

struct Float32x1 {
  using real = float;
  using Mask = bool;
  static constexpr int kLanes = 1;
  static constexpr bool kMendsTwoLn2 = false;
  static constexpr bool kHasExp2 = true;
  struct Powers;  // no table
  float v;

  Float32x1() = default;
  explicit CRRELU_INLINE Float32x1(float v) : v(v) {}

  static CRRELU_INLINE Float32x1 shifter() { return Float32x1(0x1.8p23f); }
  static CRRELU_INLINE Float32x1 fraction(Float32x1) { return Float32x1(0); }

  /// Exact enough to show the few bits of a 16-bit type, with half the operations.
  static __device__ __forceinline__ Float32x1 exp2(Float32x1 x) {
    return Float32x1(cuda::exp2_approx(x.v));
  }
  /// All of a float's bits need a polynomial. The low bits of the sum with the shifter are the
  /// power: they are moved into the exponent.
  template <Precision P>
  static __device__ __forceinline__ Significand<P, Float32x1> exp_reduced(Float32x1 power,
                                                                          Float32x1,
                                                                          Float32x1 reduced) {
    const float r = reduced.v;  // |r| <= ln 2
    const uint32_t exponent = bit_cast<uint32_t>(power.v) << 23;
    const float high = bit_cast<float>(bit_cast<uint32_t>(1.0f) + exponent);
    float p = 0x1.6a4d5ap-16f;  // relative error 3.2e-9
    p = std::fma(p, r, -0x1.12398ep-12f);
    p = std::fma(p, r, 0x1.5558bp-9f);
    p = std::fma(p, r, -0x1.555492p-6f);
    p = std::fma(p, r, 0x1.fffffcp-4f);
    p = std::fma(p, r, -0.5f);
    return {Float32x1(high), Float32x1(std::fma(r, p, 0.0f))};  // never -0: f(-0) is -0 so
  }

  /// A row is read at once.
  template <class>
  struct Cubics {
    const float* rows;
    CRRELU_INLINE Cubics(const float* rows, int) : rows(rows) {}
    __device__ __forceinline__ Cubic<Float32x1> at(Float32x1 k) const {
      const auto* row = reinterpret_cast<const uint4*>(rows) + static_cast<int>(k.v);
      const uint4 c = cuda::load(row);
      return {{Float32x1(bit_cast<float>(c.x)), Float32x1(bit_cast<float>(c.y)),
               Float32x1(bit_cast<float>(c.z)), Float32x1(bit_cast<float>(c.w))}};
    }
  };

  static CRRELU_INLINE Float32x1 load(const float* p) { return Float32x1(*p); }
  static CRRELU_INLINE Float32x1 load(const BFloat16* p) {
    return Float32x1(bit_cast<float>(static_cast<uint32_t>(p->bits) << 16));
  }
  static __device__ __forceinline__ Float32x1 load(const Half* p) {
    return Float32x1(cuda::to_float(*p));
  }
  CRRELU_INLINE void store(float* p) const { *p = v; }
  __device__ __forceinline__ void store(BFloat16* p) const {
    p->bits = static_cast<uint16_t>(cuda::to_bfloat16x2(v, 0));
  }
  __device__ __forceinline__ void store(Half* p) const {
    p->bits = static_cast<uint16_t>(cuda::to_half2(v, 0));
  }
};

CRRELU_INLINE Float32x1 operator+(Float32x1 a, Float32x1 b) { return Float32x1(a.v + b.v); }
CRRELU_INLINE Float32x1 operator-(Float32x1 a, Float32x1 b) { return Float32x1(a.v - b.v); }
CRRELU_INLINE Float32x1 operator-(Float32x1 a) { return Float32x1(-a.v); }
CRRELU_INLINE Float32x1 operator*(Float32x1 a, Float32x1 b) { return Float32x1(a.v * b.v); }
CRRELU_INLINE Float32x1 operator/(Float32x1 a, Float32x1 b) { return Float32x1(a.v / b.v); }
CRRELU_INLINE Float32x1 fma(Float32x1 a, Float32x1 b, Float32x1 c) {
  return Float32x1(std::fma(a.v, b.v, c.v));
}
CRRELU_INLINE Float32x1 min(Float32x1 a, Float32x1 b) { return a.v < b.v ? a : b; }
CRRELU_INLINE Float32x1 max(Float32x1 a, Float32x1 b) { return a.v > b.v ? a : b; }
/// Of numbers without sign the larger, where NaN is larger than all.
CRRELU_INLINE Float32x1 max_bits(Float32x1 a, Float32x1 b) {
  return bit_cast<uint32_t>(a.v) > bit_cast<uint32_t>(b.v) ? a : b;
}
CRRELU_INLINE bool all_less(Float32x1 a, float limit) { return a.v < limit; }
CRRELU_INLINE Float32x1 floor(Float32x1 a) { return Float32x1(std::floor(a.v)); }
CRRELU_INLINE bool greater(Float32x1 a, Float32x1 b) { return a.v > b.v; }
CRRELU_INLINE Float32x1 select(bool m, Float32x1 a, Float32x1 b) { return m ? a : b; }

/// In two factors, so that a result may be subnormal; below 2^-250 nothing is left of a.
CRRELU_INLINE Float32x1 ldexp(Float32x1 a, Float32x1 n) {
  const int whole = static_cast<int>(max(n, Float32x1(-250)).v), half = whole / 2;
  return Float32x1(a.v * bit_cast<float>((half + 127) << 23) *
                   bit_cast<float>((whole - half + 127) << 23));
}

/// Two 16-bit numbers share a register.
template <>
struct AnyOrder<Float32x1, BFloat16> {
  static CRRELU_INLINE Pair<Float32x1> load(const BFloat16* p) {
    uint32_t both;
    std::memcpy(&both, p, sizeof(both));
    return {Float32x1(bit_cast<float>(both << 16)), Float32x1(bit_cast<float>(both & 0xffff0000))};
  }
  static __device__ __forceinline__ void store(Pair<Float32x1> x, BFloat16* p) {
    const uint32_t both = cuda::to_bfloat16x2(x.a.v, x.b.v);
    std::memcpy(p, &both, sizeof(both));
  }
};
template <>
struct AnyOrder<Float32x1, Half> {
  static CRRELU_INLINE Pair<Float32x1> load(const Half* p) { return Pair<Float32x1>::load(p); }
  static __device__ __forceinline__ void store(Pair<Float32x1> x, Half* p) {
    const uint32_t both = cuda::to_half2(x.a.v, x.b.v);
    std::memcpy(p, &both, sizeof(both));
  }
};

CRRELU_INLINE float sum_of_lanes(Float32x1 x) { return x.v; }
CRRELU_INLINE double sum_of_lanes(Float64x1 x) { return x.v; }
template <class V>
CRRELU_INLINE typename V::real sum_of_lanes(Pair<V> x) {
  return sum_of_lanes(x.a + x.b);
}

/// So many lanes of V in lockstep; a power of two.
template <class V, int kLanes>
struct LockstepOf {
  using type = typename LockstepOf<Pair<V>, kLanes / 2>::type;
};
template <class V>
struct LockstepOf<V, 1> {
  using type = V;
};

/// What a stored type is computed in, and how many of that one's bits it shows.
template <class S>
struct Computed {
  using Lane = Float32x1;
  static constexpr Precision kPrecision = Precision::kHalf;
};
template <>
struct Computed<float> {
  using Lane = Float32x1;
  static constexpr Precision kPrecision = Precision::kFull;
};
template <>
struct Computed<double> {
  using Lane = Float64x1;
  static constexpr Precision kPrecision = Precision::kFull;
};

}  // namespace
}  // namespace crrelu
