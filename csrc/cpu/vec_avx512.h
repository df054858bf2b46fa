// The vocabulary in AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles. Included inside the target
// region of kernels_avx512.cpp, after <immintrin.h>.
//
// 2^(j/16) comes from a table that lives in registers: one permute looks up every lane, which
// leaves a cubic (float) where a table-free polynomial would need degree 6. The whole power is
// added to the entry as an integer; far from 0, where that could overflow, scalef applies it. What
// rounding took from an entry is another permute away. The table may be a multiple of that.
#pragma once

#include "../tabulated.h"
#include "pair.h"
#include "powers.h"
#include "storage.h"

namespace crrelu {
namespace {

constexpr float kShifter = 0x1.8p19f;
constexpr auto kTable = table<uint32_t, 16, 19>(kPowers);
constexpr auto kTableLow = table_less<16>(kPowersLow, kShifter * 0x1p-29f);
constexpr auto kTable64 = table<uint64_t, 16, 48>(kPowers64);

/// Which word goes where: word i of 16 to the high half of dword i, and back.
alignas(64) constexpr uint16_t kWidenWords[32] = {0, 0,  0, 1,  0, 2,  0, 3,  0, 4, 0,
                                                  5, 0,  6, 0,  7, 0,  8, 0,  9, 0, 10,
                                                  0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
alignas(64) constexpr uint16_t kNarrowWords[32] = {1,  3,  5,  7,  9,  11, 13, 15,
                                                   17, 19, 21, 23, 25, 27, 29, 31};

struct Float32x16 {
  using real = float;
  using Mask = __mmask16;
  static constexpr int kLanes = 16;
  static constexpr bool kMendsTwoLn2 = true;
  static constexpr bool kHasExp2 = false;
  static constexpr bool kManyRegisters = true;
  __m512 v;

  Float32x16() = default;
  CRRELU_INLINE Float32x16(__m512 v) : v(v) {}
  explicit CRRELU_INLINE Float32x16(float x) : v(_mm512_set1_ps(x)) {}

  static CRRELU_INLINE Float32x16 shifter() { return Float32x16(kShifter); }
  static CRRELU_INLINE Float32x16 fraction(Float32x16 shifted) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(shifted.v), _mm512_set1_epi32(15)));
  }
  struct Powers {
    __m512i entries;
    __m512 lost;
    __m512i exponent;
    CRRELU_INLINE Powers();
    explicit CRRELU_INLINE Powers(float c);
  };
  template <Precision P>
  static CRRELU_INLINE Significand<P, Float32x16> exp_reduced(Float32x16 power, Float32x16 shifted,
                                                              Float32x16 r,
                                                              const Powers& powers = Powers());

  template <class>
  class Cubics;

  static CRRELU_INLINE Float32x16 load(const float* p) { return _mm512_loadu_ps(p); }
  static CRRELU_INLINE Float32x16 load(const BFloat16* p) {
    return widen(_mm256_loadu_si256((const __m256i*)p), p);
  }
  static CRRELU_INLINE Float32x16 load(const Half* p) {
    return widen(_mm256_loadu_si256((const __m256i*)p), p);
  }
  static CRRELU_INLINE Float32x16 load(const float* p, int count) {
    return _mm512_maskz_loadu_ps(first(count), p);
  }
  template <class S>
  static CRRELU_INLINE Float32x16 load(const S* p, int count) {
    return widen(_mm256_maskz_loadu_epi16(first(count), p), p);
  }

  CRRELU_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  CRRELU_INLINE void store(float* p, int count) const { _mm512_mask_storeu_ps(p, first(count), v); }
  static CRRELU_INLINE void stream_fence() { _mm_sfence(); }
  CRRELU_INLINE void stream(float* p) const { _mm512_stream_ps(p, v); }
  template <class S>
  CRRELU_INLINE void store(S* p) const {
    _mm256_storeu_si256((__m256i*)p, narrow(p));
  }
  template <class S>
  CRRELU_INLINE void store(S* p, int count) const {
    _mm256_mask_storeu_epi16(p, first(count), narrow(p));
  }
  template <class S>
  CRRELU_INLINE void stream(S* p) const {
    _mm256_stream_si256((__m256i*)p, narrow(p));
  }

 private:
  static CRRELU_INLINE Mask first(int count) { return static_cast<Mask>((1u << count) - 1); }

  static CRRELU_INLINE Float32x16 widen(__m256i bits, const Half*) {
    __m512 wide = _mm512_cvtph_ps(bits);
#if defined(__clang__)  // which else compares the halves, one by one: seven times slower
    asm("" : "+v"(wide));
#endif
    return wide;
  }
  CRRELU_INLINE __m256i narrow(const Half*) const {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // A bfloat16 is the high half of a float: one permute of words moves all of them.
  static CRRELU_INLINE Float32x16 widen(__m256i bits, const BFloat16*) {
    const __m512i source = _mm512_load_si512(kWidenWords);
    return _mm512_castsi512_ps(
        _mm512_maskz_permutexvar_epi16(0xaaaaaaaa, source, _mm512_castsi256_si512(bits)));
  }
  CRRELU_INLINE __m256i narrow(const BFloat16*) const {
    return _mm512_castsi512_si256(
        _mm512_permutexvar_epi16(_mm512_load_si512(kNarrowWords), rounded()));
  }
  /// To nearest in the high half, by integers: the processor's own conversion flushes subnormals.
  /// Ties go away from zero, which saves a fifth of the time; at the accuracy kHalf computes with,
  /// a tie of the computed value says nothing of the exact one's. No NaN needs care: those that
  /// 16-bit inputs and epsilon's common NaN give have low bits of zero, so nothing carries.
  CRRELU_INLINE __m512i rounded() const {
    return _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
  }

  friend struct AnyOrder<Float32x16, BFloat16>;
};

/// 32 of them in one register: those at even places and those at odd places make a vector each.
template <>
struct AnyOrder<Float32x16, BFloat16> {
  static CRRELU_INLINE Pair<Float32x16> load(const BFloat16* p) {
    const __m512i words = _mm512_loadu_si512(p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(kHighWord)))};
  }
  static CRRELU_INLINE void store(Pair<Float32x16> x, BFloat16* p) {
    _mm512_storeu_si512(p, words(x));
  }
  static CRRELU_INLINE void stream(Pair<Float32x16> x, BFloat16* p) {
    _mm512_stream_si512((__m512i*)p, words(x));
  }

 private:
  static constexpr int kHighWord = static_cast<int>(0xffff0000);
  static CRRELU_INLINE __m512i words(Pair<Float32x16> x) {
    // a | b & c
    return _mm512_ternarylogic_epi32(_mm512_srli_epi32(x.a.rounded(), 16), x.b.rounded(),
                                     _mm512_set1_epi32(kHighWord), 0xf8);
  }
};

struct Float64x8 {
  using real = double;
  using Mask = __mmask8;
  static constexpr int kLanes = 8;
  static constexpr bool kMendsTwoLn2 = false;
  static constexpr bool kHasExp2 = false;
  static constexpr bool kManyRegisters = true;
  __m512d v;

  Float64x8() = default;
  CRRELU_INLINE Float64x8(__m512d v) : v(v) {}
  explicit CRRELU_INLINE Float64x8(double x) : v(_mm512_set1_pd(x)) {}

  static CRRELU_INLINE Float64x8 shifter() { return Float64x8(0x1.8p48); }
  static CRRELU_INLINE Float64x8 fraction(Float64x8 shifted) {
    return _mm512_castsi512_pd(
        _mm512_and_si512(_mm512_castpd_si512(shifted.v), _mm512_set1_epi64(15)));
  }
  struct Powers {
    __m512i entries[2];
    __m512d lost[2];
    __m512i exponent;
    CRRELU_INLINE Powers();
    explicit CRRELU_INLINE Powers(double c);
  };
  template <Precision P>
  static CRRELU_INLINE Significand<P, Float64x8> exp_reduced(Float64x8 power, Float64x8 shifted,
                                                             Float64x8 r,
                                                             const Powers& powers = Powers());

  template <class>
  class Cubics;

  static CRRELU_INLINE Float64x8 load(const double* p) { return _mm512_loadu_pd(p); }
  static CRRELU_INLINE Float64x8 load(const double* p, int count) {
    return _mm512_maskz_loadu_pd(first(count), p);
  }
  CRRELU_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  CRRELU_INLINE void store(double* p, int count) const {
    _mm512_mask_storeu_pd(p, first(count), v);
  }
  static CRRELU_INLINE void stream_fence() { _mm_sfence(); }
  CRRELU_INLINE void stream(double* p) const { _mm512_stream_pd(p, v); }

 private:
  static CRRELU_INLINE Mask first(int count) { return static_cast<Mask>((1u << count) - 1); }
};

#define CRRELU_OPERATORS(V, M, ps)                                                           \
  CRRELU_INLINE V operator+(V a, V b) { return _mm512_add_##ps(a.v, b.v); }                  \
  CRRELU_INLINE V operator-(V a, V b) { return _mm512_sub_##ps(a.v, b.v); }                  \
  CRRELU_INLINE V operator-(V a) { return -a.v; }                                            \
  CRRELU_INLINE V operator*(V a, V b) { return _mm512_mul_##ps(a.v, b.v); }                  \
  CRRELU_INLINE V operator/(V a, V b) { return _mm512_div_##ps(a.v, b.v); }                  \
  CRRELU_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_##ps(a.v, b.v, c.v); }            \
  CRRELU_INLINE V min(V a, V b) { return _mm512_min_##ps(a.v, b.v); }                        \
  CRRELU_INLINE V max(V a, V b) { return _mm512_max_##ps(a.v, b.v); }                        \
  CRRELU_INLINE M greater(V a, V b) { return _mm512_cmp_##ps##_mask(a.v, b.v, _CMP_GT_OQ); } \
  CRRELU_INLINE bool all_less(V a, V::real limit) {                                          \
    return _mm512_cmp_##ps##_mask(a.v, V(limit).v, _CMP_NLT_UQ) == 0;                        \
  }                                                                                          \
  CRRELU_INLINE V select(M m, V a, V b) { return _mm512_mask_mov_##ps(b.v, m, a.v); }        \
  CRRELU_INLINE V floor(V a) { return _mm512_floor_##ps(a.v); }                              \
  CRRELU_INLINE V ldexp(V a, V n) { return _mm512_scalef_##ps(a.v, n.v); }
CRRELU_OPERATORS(Float32x16, __mmask16, ps)
CRRELU_OPERATORS(Float64x8, __mmask8, pd)
#undef CRRELU_OPERATORS

// So few rows as two registers have lanes live in registers, and a permute looks up every lane.
// Else a row is read at once, and rows are transposed: a quarter of the loads of gathers.
template <class>
class Float32x16::Cubics {
 public:
  CRRELU_INLINE Cubics(const float* rows, int count) : rows_(rows), few_(count <= 2 * kLanes) {
    if (!few_) return;
    const __m512i first_lanes = _mm512_slli_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 2);
    const int left = count < kLanes ? 0 : count - kLanes;
    const Mask low = first(count - left), high = first(left);
    for (int j = 0; j < 4; ++j) {
      const __m512 zero = _mm512_setzero_ps();
      low_[j] = _mm512_mask_i32gather_ps(zero, low, first_lanes, rows + j, 4);
      high_[j] = _mm512_mask_i32gather_ps(zero, high, first_lanes, rows + 4 * kLanes + j, 4);
    }
  }
  CRRELU_INLINE Cubic<Float32x16> at(Float32x16 k) const {
    const __m512i number = _mm512_cvtps_epi32(k.v);
    if (few_) {
      return {{_mm512_permutex2var_ps(low_[0], number, high_[0]),
               _mm512_permutex2var_ps(low_[1], number, high_[1]),
               _mm512_permutex2var_ps(low_[2], number, high_[2]),
               _mm512_permutex2var_ps(low_[3], number, high_[3])}};
    }
    alignas(64) int32_t row[kLanes];
    _mm512_store_si512(row, number);
    __m512 r[4];
    for (int j = 0; j < 4; ++j) {
      r[j] = _mm512_castps128_ps512(_mm_loadu_ps(rows_ + 4 * row[j]));
      r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(rows_ + 4 * row[j + 4]), 1);
      r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(rows_ + 4 * row[j + 8]), 2);
      r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(rows_ + 4 * row[j + 12]), 3);
    }
    const __m512 low01 = _mm512_unpacklo_ps(r[0], r[1]), low23 = _mm512_unpacklo_ps(r[2], r[3]);
    const __m512 high01 = _mm512_unpackhi_ps(r[0], r[1]), high23 = _mm512_unpackhi_ps(r[2], r[3]);
    return {{_mm512_shuffle_ps(low01, low23, 0x44), _mm512_shuffle_ps(low01, low23, 0xee),
             _mm512_shuffle_ps(high01, high23, 0x44), _mm512_shuffle_ps(high01, high23, 0xee)}};
  }

 private:
  const float* rows_;
  bool few_;
  __m512 low_[4], high_[4];
};

template <class>
class Float64x8::Cubics {
 public:
  CRRELU_INLINE Cubics(const double* rows, int) : rows_(rows) {}
  CRRELU_INLINE Cubic<Float64x8> at(Float64x8 k) const {
    alignas(32) int32_t row[kLanes];
    _mm256_store_si256((__m256i*)row, _mm512_cvtpd_epi32(k.v));
    __m512d r[4];
    for (int j = 0; j < 4; ++j) {
      r[j] = _mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(rows_ + 4 * row[j])),
                                _mm256_loadu_pd(rows_ + 4 * row[j + 4]), 1);
    }
    const __m512d even01 = _mm512_unpacklo_pd(r[0], r[1]), even23 = _mm512_unpacklo_pd(r[2], r[3]);
    const __m512d odd01 = _mm512_unpackhi_pd(r[0], r[1]), odd23 = _mm512_unpackhi_pd(r[2], r[3]);
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    return {{_mm512_permutex2var_pd(even01, low, even23), _mm512_permutex2var_pd(odd01, low, odd23),
             _mm512_permutex2var_pd(even01, high, even23),
             _mm512_permutex2var_pd(odd01, high, odd23)}};
  }

 private:
  const double* rows_;
};

/// Of numbers without sign the larger, where NaN is larger than all.
CRRELU_INLINE Float32x16 max_bits(Float32x16 a, Float32x16 b) {
  return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)));
}
CRRELU_INLINE Float64x8 max_bits(Float64x8 a, Float64x8 b) {
  return _mm512_castsi512_pd(_mm512_max_epu64(_mm512_castpd_si512(a.v), _mm512_castpd_si512(b.v)));
}

// Powers: c * 2^(j/16), the table's entries, and what rounding took from each, as a part of it; of
// floats also what it took from 2 ln 2 (powers.h); and what the bits of c's exponent are above
// those of 1/2.
CRRELU_INLINE Float32x16::Powers::Powers()
    : entries(_mm512_load_si512(kTable.entries)),
      lost(_mm512_load_ps(kTableLow.entries)),
      exponent(_mm512_set1_epi32(0)) {}
CRRELU_INLINE Float32x16::Powers::Powers(float c) : Powers() {
  const Float32x16 scale(c), power = load(kPowers), scaled = scale * power;
  entries = _mm512_add_epi32(
      entries, _mm512_sub_epi32(_mm512_castps_si512(scaled.v), _mm512_castps_si512(power.v)));
  lost = (Float32x16(lost) + fma(scale, power, -scaled) / scaled).v;
  exponent = _mm512_sub_epi32(
      _mm512_and_si512(_mm512_castps_si512(scale.v), _mm512_set1_epi32(0x7f800000)),
      _mm512_set1_epi32(0x3f000000));
}
CRRELU_INLINE Float64x8::Powers::Powers() : exponent(_mm512_set1_epi32(0)) {
  for (int k = 0; k < 2; ++k) {
    entries[k] = _mm512_load_si512(kTable64.entries + 8 * k);
    lost[k] = _mm512_loadu_pd(kPowersLow64 + 8 * k);
  }
}
CRRELU_INLINE Float64x8::Powers::Powers(double c) : Powers() {
  for (int k = 0; k < 2; ++k) {
    const Float64x8 scale(c), power = load(kPowers64 + 8 * k), scaled = scale * power;
    entries[k] = _mm512_add_epi64(
        entries[k], _mm512_sub_epi64(_mm512_castpd_si512(scaled.v), _mm512_castpd_si512(power.v)));
    lost[k] = (Float64x8(lost[k]) + fma(scale, power, -scaled) / scaled).v;
  }
  exponent = _mm512_sub_epi64(
      _mm512_and_si512(_mm512_castpd_si512(Float64x8(c).v), _mm512_set1_epi64(0x7ff0000000000000)),
      _mm512_set1_epi64(0x3fe0000000000000));
}

CRRELU_INLINE Float32x16 over_power(Float32x16 a, const Float32x16::Powers& powers) {
  return _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_castps_si512(a.v), powers.exponent));
}
CRRELU_INLINE Float64x8 over_power(Float64x8 a, const Float64x8::Powers& powers) {
  return _mm512_castsi512_pd(_mm512_sub_epi64(_mm512_castpd_si512(a.v), powers.exponent));
}

// The sum with the shifter has the index in its low four bits, which the permutes read, and the
// whole power above them.
CRRELU_INLINE Float32x16 high_part(const Float32x16::Powers& powers, Float32x16 power) {
  const __m512i n = _mm512_castps_si512(power.v);
  const __m512i entry = _mm512_permutexvar_epi32(n, powers.entries);
  return _mm512_castsi512_ps(_mm512_add_epi32(entry, _mm512_slli_epi32(n, 19)));
}
CRRELU_INLINE Float64x8 high_part(const Float64x8::Powers& powers, Float64x8 power) {
  const __m512i n = _mm512_castpd_si512(power.v);
  const __m512i entry = _mm512_permutex2var_epi64(powers.entries[0], n, powers.entries[1]);
  return _mm512_castsi512_pd(_mm512_add_epi64(entry, _mm512_slli_epi64(n, 48)));
}

/// What rounding took, as a part.
CRRELU_INLINE Float32x16 lost(const Float32x16::Powers& powers, Float32x16 shifted) {
  const __m512i n = _mm512_castps_si512(shifted.v);
  const Float32x16 entry = _mm512_permutexvar_ps(n, powers.lost);
  return entry + Float32x16(_mm512_castsi512_ps(_mm512_sub_epi32(n, _mm512_set1_epi32(29 << 23))));
}
CRRELU_INLINE Float64x8 lost(const Float64x8::Powers& powers, Float64x8 shifted) {
  return _mm512_permutex2var_pd(powers.lost[0], _mm512_castpd_si512(shifted.v), powers.lost[1]);
}

template <Precision P>
CRRELU_INLINE Significand<P, Float32x16> Float32x16::exp_reduced(Float32x16 power,
                                                                 Float32x16 shifted, Float32x16 r,
                                                                 const Powers& powers) {
  const Float32x16 high = high_part(powers, power);
  if constexpr (P == Precision::kFull) {
    Float32x16 p = fma(r, Float32x16(-0x1.5556ep-6f), Float32x16(0x1.0001ecp-3f));  // 2.4e-9
    p = fma(p, r, Float32x16(-0.5f));
    return {high, fma(r, p, lost(powers, shifted))};
  } else {
    const Float32x16 p = fma(r, Float32x16(0x1.000148p-3f), Float32x16(-0x1.00029p-1f));  // 8.7e-7
    return fma(high * r, p, high);
  }
}

template <Precision P>
CRRELU_INLINE Significand<P, Float64x8> Float64x8::exp_reduced(Float64x8 power, Float64x8 shifted,
                                                               Float64x8 r, const Powers& powers) {
  Float64x8 p = fma(r, Float64x8(0x1.6c17ed5c1f49ep-16), Float64x8(-0x1.11123d01366d4p-12));
  p = fma(p, r, Float64x8(0x1.55555554e93b7p-9));  // 1.4e-17
  p = fma(p, r, Float64x8(-0x1.555555547d216p-6));
  p = fma(p, r, Float64x8(0x1.0000000000001p-3));
  p = fma(p, r, Float64x8(-0x1.0000000000003p-1));
  return {high_part(powers, power), fma(r, p, lost(powers, shifted))};
}

}  // namespace
}  // namespace crrelu
