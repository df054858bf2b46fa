// The vocabulary in NEON, which every aarch64 has: 4 floats or 2 doubles.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "../tabulated.h"
#include "eighths.h"
#include "storage.h"

namespace crrelu {
namespace {

struct Float32x4 {
  using real = float;
  using Mask = uint32x4_t;
  static constexpr int kLanes = 4;
  static constexpr bool kMendsTwoLn2 = true;
  static constexpr bool kHasExp2 = false;
  static constexpr bool kManyRegisters = false;
  float32x4_t v;

  Float32x4() = default;
  CRRELU_INLINE Float32x4(float32x4_t v) : v(v) {}
  explicit CRRELU_INLINE Float32x4(float x) : v(vdupq_n_f32(x)) {}

  static CRRELU_INLINE Float32x4 shifter() { return Float32x4(kShifter); }
  static CRRELU_INLINE Float32x4 fraction(Float32x4 shifted) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(shifted.v), vdupq_n_u32(7)));
  }
  struct Powers {
    uint8x16x2_t entries, lost;
    uint32x4_t exponent;
    CRRELU_INLINE Powers();
    explicit CRRELU_INLINE Powers(float c);
  };
  template <Precision P>
  static CRRELU_INLINE Significand<P, Float32x4> exp_reduced(Float32x4 power, Float32x4 shifted,
                                                             Float32x4 r,
                                                             const Powers& powers = Powers()) {
    return exp_by_eighths<P>(power, shifted, r, powers);
  }

  template <class>
  class Cubics;

  static CRRELU_INLINE Float32x4 load(const float* p) { return vld1q_f32(p); }
  static CRRELU_INLINE Float32x4 load(const BFloat16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16));
  }
  static CRRELU_INLINE Float32x4 load(const Half* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
  }
  template <class S>
  static CRRELU_INLINE Float32x4 load(const S* p, int count) {
    S buffer[kLanes] = {};
    std::memcpy(buffer, p, count * sizeof(S));
    return load(buffer);
  }

  CRRELU_INLINE void store(float* p) const { vst1q_f32(p, v); }
  /// To nearest, ties away from zero, as vec_avx512.h says; no NaN needs care there or here.
  CRRELU_INLINE void store(BFloat16* p) const {
    vst1_u16(&p->bits, vraddhn_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0)));
  }
  CRRELU_INLINE void store(Half* p) const {
    vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(v)));
  }
  template <class S>
  CRRELU_INLINE void store(S* p, int count) const {
    S buffer[kLanes];
    store(buffer);
    std::memcpy(p, buffer, count * sizeof(S));
  }
  static CRRELU_INLINE void stream_fence() {}
  template <class S>
  CRRELU_INLINE void stream(S* p) const {
    store(p);
  }
};

struct Float64x2 {
  using real = double;
  using Mask = uint64x2_t;
  static constexpr int kLanes = 2;
  static constexpr bool kMendsTwoLn2 = false;
  static constexpr bool kHasExp2 = false;
  static constexpr bool kManyRegisters = false;
  float64x2_t v;

  Float64x2() = default;
  CRRELU_INLINE Float64x2(float64x2_t v) : v(v) {}
  explicit CRRELU_INLINE Float64x2(double x) : v(vdupq_n_f64(x)) {}

  static CRRELU_INLINE Float64x2 shifter() { return Float64x2(0x1.8p52); }
  static CRRELU_INLINE Float64x2 fraction(Float64x2) { return Float64x2(0.0); }
  struct Powers {
    float64x2_t c;
    uint64x2_t exponent;
    CRRELU_INLINE Powers() : c(vdupq_n_f64(1)), exponent(vdupq_n_u64(0)) {}
    explicit CRRELU_INLINE Powers(double c)
        : c(vdupq_n_f64(c)),
          exponent(vsubq_u64(
              vandq_u64(vreinterpretq_u64_f64(vdupq_n_f64(c)), vdupq_n_u64(0x7ff0000000000000)),
              vdupq_n_u64(0x3fe0000000000000))) {}
  };
  template <Precision P>
  static CRRELU_INLINE Significand<P, Float64x2> exp_reduced(Float64x2 power, Float64x2,
                                                             Float64x2 r,
                                                             const Powers& powers = Powers()) {
    return exp_by_ones(power, r, powers);
  }

  template <class>
  class Cubics;

  static CRRELU_INLINE Float64x2 load(const double* p) { return vld1q_f64(p); }
  static CRRELU_INLINE Float64x2 load(const double* p, int count) {
    double buffer[kLanes] = {};
    std::memcpy(buffer, p, count * sizeof(double));
    return load(buffer);
  }
  CRRELU_INLINE void store(double* p) const { vst1q_f64(p, v); }
  CRRELU_INLINE void store(double* p, int count) const {
    double buffer[kLanes];
    store(buffer);
    std::memcpy(p, buffer, count * sizeof(double));
  }
  static CRRELU_INLINE void stream_fence() {}
  CRRELU_INLINE void stream(double* p) const { store(p); }
};

/// In comparing and choosing clang sees the processor's own maximum, which of two zeros takes the
/// positive one.
template <class M>
CRRELU_INLINE M unseen(M mask) {
#if defined(__clang__)
  asm("" : "+w"(mask));
#endif
  return mask;
}

// That also gives NaN where either is one: max_bits wants it.
#define CRRELU_OPERATORS(V, M, f64)                                                     \
  CRRELU_INLINE V operator+(V a, V b) { return vaddq_##f64(a.v, b.v); }                 \
  CRRELU_INLINE V operator-(V a, V b) { return vsubq_##f64(a.v, b.v); }                 \
  CRRELU_INLINE V operator-(V a) { return vnegq_##f64(a.v); }                           \
  CRRELU_INLINE V operator*(V a, V b) { return vmulq_##f64(a.v, b.v); }                 \
  CRRELU_INLINE V operator/(V a, V b) { return vdivq_##f64(a.v, b.v); }                 \
  CRRELU_INLINE V fma(V a, V b, V c) { return vfmaq_##f64(c.v, a.v, b.v); }             \
  CRRELU_INLINE M greater(V a, V b) { return unseen(vcgtq_##f64(a.v, b.v)); }           \
  CRRELU_INLINE V select(M m, V a, V b) { return vbslq_##f64(m, a.v, b.v); }            \
  CRRELU_INLINE V min(V a, V b) { return select(greater(b, a), a, b); }                 \
  CRRELU_INLINE V max(V a, V b) { return select(greater(a, b), a, b); }                 \
  CRRELU_INLINE V max_bits(V a, V b) { return vmaxq_##f64(a.v, b.v); }                  \
  CRRELU_INLINE bool all_less(V a, V::real limit) { return vmaxvq_##f64(a.v) < limit; } \
  CRRELU_INLINE V floor(V a) { return vrndmq_##f64(a.v); }
CRRELU_OPERATORS(Float32x4, uint32x4_t, f32)
CRRELU_OPERATORS(Float64x2, uint64x2_t, f64)
#undef CRRELU_OPERATORS

// A row of coefficients fills one register or two, and rows are transposed.
template <class>
class Float32x4::Cubics {
 public:
  CRRELU_INLINE Cubics(const float* rows, int) : rows_(rows) {}
  CRRELU_INLINE Cubic<Float32x4> at(Float32x4 k) const {
    const int32x4_t row = vcvtq_s32_f32(k.v);
    const float64x2_t r[4] = {whole(vgetq_lane_s32(row, 0)), whole(vgetq_lane_s32(row, 1)),
                              whole(vgetq_lane_s32(row, 2)), whole(vgetq_lane_s32(row, 3))};
    const float32x4x2_t low = vuzpq_f32(vreinterpretq_f32_f64(vzip1q_f64(r[0], r[1])),
                                        vreinterpretq_f32_f64(vzip1q_f64(r[2], r[3])));
    const float32x4x2_t high = vuzpq_f32(vreinterpretq_f32_f64(vzip2q_f64(r[0], r[1])),
                                         vreinterpretq_f32_f64(vzip2q_f64(r[2], r[3])));
    return {{low.val[0], low.val[1], high.val[0], high.val[1]}};
  }

 private:
  CRRELU_INLINE float64x2_t whole(int32_t row) const {
    return vreinterpretq_f64_f32(vld1q_f32(rows_ + 4 * static_cast<int64_t>(row)));
  }
  const float* rows_;
};

template <class>
class Float64x2::Cubics {
 public:
  CRRELU_INLINE Cubics(const double* rows, int) : rows_(rows) {}
  CRRELU_INLINE Cubic<Float64x2> at(Float64x2 k) const {
    const int64x2_t row = vcvtq_s64_f64(k.v);
    const double* const first = rows_ + 4 * vgetq_lane_s64(row, 0);
    const double* const second = rows_ + 4 * vgetq_lane_s64(row, 1);
    const float64x2_t low[2] = {vld1q_f64(first), vld1q_f64(second)};
    const float64x2_t high[2] = {vld1q_f64(first + 2), vld1q_f64(second + 2)};
    return {{vzip1q_f64(low[0], low[1]), vzip2q_f64(low[0], low[1]), vzip1q_f64(high[0], high[1]),
             vzip2q_f64(high[0], high[1])}};
  }

 private:
  const double* rows_;
};

/// 2^n for an integral n in the range of normal numbers: n + bias, moved to where the exponent is.
CRRELU_INLINE Float32x4 power_of_two(Float32x4 n) {
  const Float32x4 biased = n + Float32x4(0x1.8p23f + 127);
  return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(biased.v), 23));
}
CRRELU_INLINE Float64x2 power_of_two(Float64x2 n) {
  const Float64x2 biased = n + Float64x2(0x1.8p52 + 1023);
  return vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(biased.v), 52));
}

CRRELU_INLINE Float32x4 ldexp(Float32x4 a, Float32x4 n) { return ldexp_in_halves(a, n, -252); }
CRRELU_INLINE Float64x2 ldexp(Float64x2 a, Float64x2 n) { return ldexp_in_halves(a, n, -2044); }

// Powers: as vec_avx2.h has them. A lookup takes bytes by their places, of two registers at once.
CRRELU_INLINE uint8x16x2_t bytes_of(const uint32_t* entries) {
  return {{vreinterpretq_u8_u32(vld1q_u32(entries)), vreinterpretq_u8_u32(vld1q_u32(entries + 4))}};
}
CRRELU_INLINE uint8x16x2_t bytes_of(const float* entries) {
  return {{vreinterpretq_u8_f32(vld1q_f32(entries)), vreinterpretq_u8_f32(vld1q_f32(entries + 4))}};
}
CRRELU_INLINE Float32x4::Powers::Powers()
    : entries(bytes_of(kTable.entries)),
      lost(bytes_of(kTableLow.entries)),
      exponent(vdupq_n_u32(0)) {}
CRRELU_INLINE Float32x4::Powers::Powers(float c) : Powers() {
  const Float32x4 scale(c);
  for (int k = 0; k < 2; ++k) {
    const Float32x4 power = load(kEntries.entries + 4 * k), scaled = scale * power;
    const uint32x4_t more =
        vsubq_u32(vreinterpretq_u32_f32(scaled.v), vreinterpretq_u32_f32(power.v));
    entries.val[k] = vreinterpretq_u8_u32(vaddq_u32(vreinterpretq_u32_u8(entries.val[k]), more));
    const Float32x4 low(vreinterpretq_f32_u8(lost.val[k]));
    lost.val[k] = vreinterpretq_u8_f32((low + fma(scale, power, -scaled) / scaled).v);
  }
  exponent = vsubq_u32(vandq_u32(vreinterpretq_u32_f32(scale.v), vdupq_n_u32(0x7f800000)),
                       vdupq_n_u32(0x3f000000));
}

CRRELU_INLINE Float32x4 over_power(Float32x4 a, const Float32x4::Powers& powers) {
  return vreinterpretq_f32_u32(vsubq_u32(vreinterpretq_u32_f32(a.v), powers.exponent));
}
CRRELU_INLINE Float64x2 over_power(Float64x2 a, const Float64x2::Powers& powers) {
  return vreinterpretq_f64_u64(vsubq_u64(vreinterpretq_u64_f64(a.v), powers.exponent));
}

/// The bytes of the entry whose index is in the low three bits of a sum with the shifter.
CRRELU_INLINE uint32x4_t entry(const uint8x16x2_t& entries, uint32x4_t n) {
  const uint32x4_t bytes =
      vmlaq_u32(vdupq_n_u32(0x03020100), vandq_u32(n, vdupq_n_u32(7)), vdupq_n_u32(0x04040404));
  return vreinterpretq_u32_u8(vqtbl2q_u8(entries, vreinterpretq_u8_u32(bytes)));
}

// The whole power stands above those bits.
CRRELU_INLINE Float32x4 high_part(const Float32x4::Powers& powers, Float32x4 power) {
  const uint32x4_t n = vreinterpretq_u32_f32(power.v);
  return vreinterpretq_f32_u32(vaddq_u32(entry(powers.entries, n), vshlq_n_u32(n, 20)));
}
CRRELU_INLINE Float64x2 high_part(const Float64x2::Powers& powers, Float64x2 power) {
  return vreinterpretq_f64_u64(
      vaddq_u64(vreinterpretq_u64_f64(powers.c), vshlq_n_u64(vreinterpretq_u64_f64(power.v), 52)));
}

/// What rounding took, as a part.
CRRELU_INLINE Float32x4 lost(const Float32x4::Powers& powers, Float32x4 shifted) {
  const uint32x4_t n = vreinterpretq_u32_f32(shifted.v);
  const Float32x4 of_entry(vreinterpretq_f32_u32(entry(powers.lost, n)));
  return of_entry + Float32x4(vreinterpretq_f32_u32(vsubq_u32(n, vdupq_n_u32(29 << 23))));
}

}  // namespace
}  // namespace crrelu
