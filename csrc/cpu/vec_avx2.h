// The vocabulary in AVX2 with FMA and F16C: 8 floats or 4 doubles. Included inside the target
// region of kernels_avx2.cpp, after <immintrin.h>.
#pragma once

#include "../tabulated.h"
#include "eighths.h"
#include "storage.h"

namespace crrelu {
namespace {

struct Float32x8 {
  using real = float;
  using Mask = Float32x8;
  static constexpr int kLanes = 8;
  static constexpr bool kMendsTwoLn2 = true;
  static constexpr bool kHasExp2 = false;
  static constexpr bool kManyRegisters = false;
  __m256 v;

  Float32x8() = default;
  CRRELU_INLINE Float32x8(__m256 v) : v(v) {}
  explicit CRRELU_INLINE Float32x8(float x) : v(_mm256_set1_ps(x)) {}

  static CRRELU_INLINE Float32x8 shifter() { return Float32x8(kShifter); }
  static CRRELU_INLINE Float32x8 fraction(Float32x8 shifted) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(_mm256_castps_si256(shifted.v), _mm256_set1_epi32(7)));
  }
  struct Powers {
    __m256i entries;
    __m256 lost;
    __m256i exponent;
    CRRELU_INLINE Powers();
    explicit CRRELU_INLINE Powers(float c);
  };
  template <Precision P>
  static CRRELU_INLINE Significand<P, Float32x8> exp_reduced(Float32x8 power, Float32x8 shifted,
                                                             Float32x8 r,
                                                             const Powers& powers = Powers());

  template <class>
  class Cubics;

  static CRRELU_INLINE Float32x8 load(const float* p) { return _mm256_loadu_ps(p); }
  static CRRELU_INLINE Float32x8 load(const BFloat16* p) {
    return widen(_mm_loadu_si128((const __m128i*)p), p);
  }
  static CRRELU_INLINE Float32x8 load(const Half* p) {
    return widen(_mm_loadu_si128((const __m128i*)p), p);
  }
  static CRRELU_INLINE Float32x8 load(const float* p, int count) {
    return _mm256_maskload_ps(p, first(count));
  }
  template <class S>
  static CRRELU_INLINE Float32x8 load(const S* p, int count) {
    S buffer[kLanes] = {};
    std::memcpy(buffer, p, count * sizeof(S));
    return load(buffer);
  }

  CRRELU_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  CRRELU_INLINE void store(float* p, int count) const { _mm256_maskstore_ps(p, first(count), v); }
  static CRRELU_INLINE void stream_fence() { _mm_sfence(); }
  CRRELU_INLINE void stream(float* p) const { _mm256_stream_ps(p, v); }
  template <class S>
  CRRELU_INLINE void store(S* p) const {
    _mm_storeu_si128((__m128i*)p, narrow(p));
  }
  template <class S>
  CRRELU_INLINE void store(S* p, int count) const {
    S buffer[kLanes];
    store(buffer);
    std::memcpy(p, buffer, count * sizeof(S));
  }
  template <class S>
  CRRELU_INLINE void stream(S* p) const {
    _mm_stream_si128((__m128i*)p, narrow(p));
  }

 private:
  static CRRELU_INLINE __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static CRRELU_INLINE Float32x8 widen(__m128i bits, const Half*) {
    __m256 wide = _mm256_cvtph_ps(bits);
#if defined(__clang__)  // which else compares the halves, one by one: seven times slower
    asm("" : "+x"(wide));
#endif
    return wide;
  }
  CRRELU_INLINE __m128i narrow(const Half*) const {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static CRRELU_INLINE Float32x8 widen(__m128i bits, const BFloat16*) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  CRRELU_INLINE __m128i narrow(const BFloat16*) const {
    // To nearest, ties away from zero, as vec_avx512.h says; no NaN needs care there or here.
    const __m256i rounded = _mm256_add_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(0x8000));
    const __m256i high = _mm256_srli_epi32(rounded, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
};

struct Float64x4 {
  using real = double;
  using Mask = Float64x4;
  static constexpr int kLanes = 4;
  static constexpr bool kMendsTwoLn2 = false;
  static constexpr bool kHasExp2 = false;
  static constexpr bool kManyRegisters = false;
  __m256d v;

  Float64x4() = default;
  CRRELU_INLINE Float64x4(__m256d v) : v(v) {}
  explicit CRRELU_INLINE Float64x4(double x) : v(_mm256_set1_pd(x)) {}

  static CRRELU_INLINE Float64x4 shifter() { return Float64x4(0x1.8p52); }
  static CRRELU_INLINE Float64x4 fraction(Float64x4) { return _mm256_setzero_pd(); }
  struct Powers {
    __m256d c;
    __m256i exponent;
    CRRELU_INLINE Powers();
    explicit CRRELU_INLINE Powers(double c);
  };
  template <Precision P>
  static CRRELU_INLINE Significand<P, Float64x4> exp_reduced(Float64x4 power, Float64x4 shifted,
                                                             Float64x4 r,
                                                             const Powers& powers = Powers());

  template <class>
  class Cubics;

  static CRRELU_INLINE Float64x4 load(const double* p) { return _mm256_loadu_pd(p); }
  static CRRELU_INLINE Float64x4 load(const double* p, int count) {
    return _mm256_maskload_pd(p, first(count));
  }
  CRRELU_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  CRRELU_INLINE void store(double* p, int count) const { _mm256_maskstore_pd(p, first(count), v); }
  static CRRELU_INLINE void stream_fence() { _mm_sfence(); }
  CRRELU_INLINE void stream(double* p) const { _mm256_stream_pd(p, v); }

 private:
  static CRRELU_INLINE __m256i first(int count) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
  }
};

#define CRRELU_OPERATORS(V, ps)                                                       \
  CRRELU_INLINE V operator+(V a, V b) { return _mm256_add_##ps(a.v, b.v); }           \
  CRRELU_INLINE V operator-(V a, V b) { return _mm256_sub_##ps(a.v, b.v); }           \
  CRRELU_INLINE V operator-(V a) { return -a.v; }                                     \
  CRRELU_INLINE V operator*(V a, V b) { return _mm256_mul_##ps(a.v, b.v); }           \
  CRRELU_INLINE V operator/(V a, V b) { return _mm256_div_##ps(a.v, b.v); }           \
  CRRELU_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_##ps(a.v, b.v, c.v); }     \
  CRRELU_INLINE V min(V a, V b) { return _mm256_min_##ps(a.v, b.v); }                 \
  CRRELU_INLINE V max(V a, V b) { return _mm256_max_##ps(a.v, b.v); }                 \
  CRRELU_INLINE V greater(V a, V b) { return _mm256_cmp_##ps(a.v, b.v, _CMP_GT_OQ); } \
  CRRELU_INLINE bool all_less(V a, V::real limit) {                                   \
    return _mm256_movemask_##ps(_mm256_cmp_##ps(a.v, V(limit).v, _CMP_NLT_UQ)) == 0;  \
  }                                                                                   \
  CRRELU_INLINE V select(V m, V a, V b) { return _mm256_blendv_##ps(b.v, a.v, m.v); } \
  CRRELU_INLINE V floor(V a) { return _mm256_floor_##ps(a.v); }
CRRELU_OPERATORS(Float32x8, ps)
CRRELU_OPERATORS(Float64x4, pd)
#undef CRRELU_OPERATORS

/// Of numbers without sign the larger, where NaN is larger than all.
CRRELU_INLINE Float32x8 max_bits(Float32x8 a, Float32x8 b) {
  return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a.v), _mm256_castps_si256(b.v)));
}
CRRELU_INLINE Float64x4 max_bits(Float64x4 a, Float64x4 b) {  // a NaN may have a sign
  const __m256d sign = _mm256_set1_pd(-0.0);
  const __m256d x = _mm256_andnot_pd(sign, a.v), y = _mm256_andnot_pd(sign, b.v);
  const __m256i larger = _mm256_cmpgt_epi64(_mm256_castpd_si256(y), _mm256_castpd_si256(x));
  return _mm256_blendv_pd(x, y, _mm256_castsi256_pd(larger));
}

// A row of coefficients is read at once, and rows are transposed: half the loads of gathers.
template <class>
class Float32x8::Cubics {
 public:
  CRRELU_INLINE Cubics(const float* rows, int) : rows_(rows) {}
  CRRELU_INLINE Cubic<Float32x8> at(Float32x8 k) const {
    alignas(32) int32_t row[kLanes];
    _mm256_store_si256((__m256i*)row, _mm256_cvtps_epi32(k.v));
    __m256 r[4];
    for (int j = 0; j < 4; ++j) {
      r[j] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows_ + 4 * row[j])),
                                  _mm_loadu_ps(rows_ + 4 * row[j + 4]), 1);
    }
    const __m256 low01 = _mm256_unpacklo_ps(r[0], r[1]), low23 = _mm256_unpacklo_ps(r[2], r[3]);
    const __m256 high01 = _mm256_unpackhi_ps(r[0], r[1]), high23 = _mm256_unpackhi_ps(r[2], r[3]);
    return {{_mm256_shuffle_ps(low01, low23, 0x44), _mm256_shuffle_ps(low01, low23, 0xee),
             _mm256_shuffle_ps(high01, high23, 0x44), _mm256_shuffle_ps(high01, high23, 0xee)}};
  }

 private:
  const float* rows_;
};

template <class>
class Float64x4::Cubics {
 public:
  CRRELU_INLINE Cubics(const double* rows, int) : rows_(rows) {}
  CRRELU_INLINE Cubic<Float64x4> at(Float64x4 k) const {
    alignas(16) int32_t row[kLanes];
    _mm_store_si128((__m128i*)row, _mm256_cvtpd_epi32(k.v));
    __m256d r[kLanes];
    for (int j = 0; j < kLanes; ++j) r[j] = _mm256_loadu_pd(rows_ + 4 * row[j]);
    const __m256d even01 = _mm256_unpacklo_pd(r[0], r[1]), even23 = _mm256_unpacklo_pd(r[2], r[3]);
    const __m256d odd01 = _mm256_unpackhi_pd(r[0], r[1]), odd23 = _mm256_unpackhi_pd(r[2], r[3]);
    return {
        {_mm256_permute2f128_pd(even01, even23, 0x20), _mm256_permute2f128_pd(odd01, odd23, 0x20),
         _mm256_permute2f128_pd(even01, even23, 0x31), _mm256_permute2f128_pd(odd01, odd23, 0x31)}};
  }

 private:
  const double* rows_;
};

/// 2^n for an integral n in the range of normal numbers: n + bias, moved to where the exponent is.
CRRELU_INLINE Float32x8 power_of_two(Float32x8 n) {
  const Float32x8 biased = n + Float32x8(0x1.8p23f + 127);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(biased.v), 23));
}
CRRELU_INLINE Float64x4 power_of_two(Float64x4 n) {
  const Float64x4 biased = n + Float64x4(0x1.8p52 + 1023);
  return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(biased.v), 52));
}

CRRELU_INLINE Float32x8 ldexp(Float32x8 a, Float32x8 n) { return ldexp_in_halves(a, n, -252); }
CRRELU_INLINE Float64x4 ldexp(Float64x4 a, Float64x4 n) { return ldexp_in_halves(a, n, -2044); }

// Powers: c * 2^(j/8), the table's entries, and what rounding took from each, as a part of it, and
// from 2 ln 2 (powers.h); and what the bits of c's exponent are above those of 1/2. Of doubles c
// alone.
CRRELU_INLINE Float32x8::Powers::Powers()
    : entries(_mm256_load_si256((const __m256i*)kTable.entries)),
      lost(_mm256_load_ps(kTableLow.entries)),
      exponent(_mm256_setzero_si256()) {}
CRRELU_INLINE Float32x8::Powers::Powers(float c) : Powers() {
  const Float32x8 scale(c), power = load(kEntries.entries), scaled = scale * power;
  entries = _mm256_add_epi32(
      entries, _mm256_sub_epi32(_mm256_castps_si256(scaled.v), _mm256_castps_si256(power.v)));
  lost = (Float32x8(lost) + fma(scale, power, -scaled) / scaled).v;
  exponent = _mm256_sub_epi32(
      _mm256_and_si256(_mm256_castps_si256(scale.v), _mm256_set1_epi32(0x7f800000)),
      _mm256_set1_epi32(0x3f000000));
}
CRRELU_INLINE Float64x4::Powers::Powers()
    : c(_mm256_set1_pd(1)), exponent(_mm256_setzero_si256()) {}
CRRELU_INLINE Float64x4::Powers::Powers(double c_) : c(_mm256_set1_pd(c_)) {
  exponent = _mm256_sub_epi64(
      _mm256_and_si256(_mm256_castpd_si256(c), _mm256_set1_epi64x(0x7ff0000000000000)),
      _mm256_set1_epi64x(0x3fe0000000000000));
}

CRRELU_INLINE Float32x8 over_power(Float32x8 a, const Float32x8::Powers& powers) {
  return _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(a.v), powers.exponent));
}
CRRELU_INLINE Float64x4 over_power(Float64x4 a, const Float64x4::Powers& powers) {
  return _mm256_castsi256_pd(_mm256_sub_epi64(_mm256_castpd_si256(a.v), powers.exponent));
}

// The sum with the shifter has the index in its low three bits, which the permutes read, and the
// whole power above them.
CRRELU_INLINE Float32x8 high_part(const Float32x8::Powers& powers, Float32x8 power) {
  const __m256i n = _mm256_castps_si256(power.v);
  const __m256i entry = _mm256_permutevar8x32_epi32(powers.entries, n);
  return _mm256_castsi256_ps(_mm256_add_epi32(entry, _mm256_slli_epi32(n, 20)));
}

CRRELU_INLINE Float64x4 high_part(const Float64x4::Powers& powers, Float64x4 power) {
  return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(powers.c),
                                              _mm256_slli_epi64(_mm256_castpd_si256(power.v), 52)));
}

/// What rounding took, as a part.
CRRELU_INLINE Float32x8 lost(const Float32x8::Powers& powers, Float32x8 shifted) {
  const __m256i n = _mm256_castps_si256(shifted.v);
  const Float32x8 entry = _mm256_permutevar8x32_ps(powers.lost, n);
  return entry + Float32x8(_mm256_castsi256_ps(_mm256_sub_epi32(n, _mm256_set1_epi32(29 << 23))));
}

template <Precision P>
CRRELU_INLINE Significand<P, Float32x8> Float32x8::exp_reduced(Float32x8 power, Float32x8 shifted,
                                                               Float32x8 r, const Powers& powers) {
  return exp_by_eighths<P>(power, shifted, r, powers);
}
template <Precision P>
CRRELU_INLINE Significand<P, Float64x4> Float64x4::exp_reduced(Float64x4 power, Float64x4,
                                                               Float64x4 r, const Powers& powers) {
  return exp_by_ones(power, r, powers);
}

}  // namespace
}  // namespace crrelu
