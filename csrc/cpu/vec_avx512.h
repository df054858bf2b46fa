// The vocabulary in AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles. Included inside the target
// region of kernels_avx512.cpp, after <immintrin.h>.
//
// 2^exponent comes from scalef, and the fraction from a table of 2^(j/16) that lives in registers:
// one permute looks up every lane, which leaves a cubic (float) where a table-free polynomial would
// need degree 6.
#pragma once

#include "../crrelu_math.h"
#include "storage.h"

namespace crrelu {
namespace {

/// 2^(j/16), j = 0..15: one permute looks up all lanes at once.
alignas(64) constexpr float kExp2Table16f[16] = {
    0x1.000000p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f, 0x1.306fe0p+0f, 0x1.3dea64p+0f,
    0x1.4bfdaep+0f, 0x1.5ab07ep+0f, 0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
    0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f};
/// What rounding took from the entries above.
alignas(64) constexpr float kExp2Table16fLow[16] = {
    0x0.000000p+0f,   0x1.9f3122p-25f,  -0x1.c15742p-27f, 0x1.ceac48p-25f,
    0x1.4636e2p-25f,  0x1.824684p-25f,  -0x1.593abcp-25f, -0x1.5bd5ecp-27f,
    0x1.9fcef4p-26f,  -0x1.829fd0p-25f, 0x1.15506ep-27f,  0x1.51f848p-27f,
    -0x1.a94b14p-26f, -0x1.3d56b2p-27f, -0x1.822dbcp-27f, 0x1.52486cp-27f};
alignas(64) constexpr double kExp2Table16d[16] = {
    0x1.0000000000000p+0, 0x1.0b5586cf9890fp+0, 0x1.172b83c7d517bp+0, 0x1.2387a6e756238p+0,
    0x1.306fe0a31b715p+0, 0x1.3dea64c123422p+0, 0x1.4bfdad5362a27p+0, 0x1.5ab07dd485429p+0,
    0x1.6a09e667f3bcdp+0, 0x1.7a11473eb0187p+0, 0x1.8ace5422aa0dbp+0, 0x1.9c49182a3f090p+0,
    0x1.ae89f995ad3adp+0, 0x1.c199bdd85529cp+0, 0x1.d5818dcfba487p+0, 0x1.ea4afa2a490dap+0};

alignas(64) constexpr double kExp2Table16dLow[16] = {0x0.0p+0,
                                                     0x1.8a62e4adc610bp-54,
                                                     -0x1.19041b9d78a76p-55,
                                                     0x1.9b07eb6c70573p-54,
                                                     0x1.6f46ad23182e4p-55,
                                                     0x1.ada0911f09ebcp-55,
                                                     0x1.d4397afec42e2p-56,
                                                     0x1.6324c054647adp-54,
                                                     -0x1.bdd3413b26456p-54,
                                                     -0x1.41577ee04992fp-55,
                                                     0x1.6e9f156864b27p-54,
                                                     0x1.c7c46b071f2bep-56,
                                                     0x1.7a1cd345dcc81p-54,
                                                     0x1.11065895048ddp-55,
                                                     0x1.2ed02d75b3707p-55,
                                                     -0x1.e9c23179c2893p-54};

struct Float32x16 {
  using real = float;
  using Mask = __mmask16;
  static constexpr int kLanes = 16;
  __m512 v;

  Float32x16() = default;
  CRRELU_INLINE Float32x16(__m512 v) : v(v) {}
  explicit CRRELU_INLINE Float32x16(float x) : v(_mm512_set1_ps(x)) {}

  static CRRELU_INLINE Float32x16 shifter() { return Float32x16(0x1.8p19f); }
  template <Precision P>
  static CRRELU_INLINE Sum<Float32x16> exp_reduced(Float32x16 shifted, Float32x16 r);

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

  static CRRELU_INLINE Float32x16 widen(__m256i bits, const Half*) { return _mm512_cvtph_ps(bits); }
  CRRELU_INLINE __m256i narrow(const Half*) const {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static CRRELU_INLINE Float32x16 widen(__m256i bits, const BFloat16*) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  CRRELU_INLINE __m256i narrow(const BFloat16*) const {
    // To nearest even by integers: the processor's own conversion flushes subnormals. No NaN needs
    // care: those that 16-bit inputs and a quieted epsilon give have 16 low zero bits, and so
    // nothing carries.
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
};

struct Float64x8 {
  using real = double;
  using Mask = __mmask8;
  static constexpr int kLanes = 8;
  __m512d v;

  Float64x8() = default;
  CRRELU_INLINE Float64x8(__m512d v) : v(v) {}
  explicit CRRELU_INLINE Float64x8(double x) : v(_mm512_set1_pd(x)) {}

  static CRRELU_INLINE Float64x8 shifter() { return Float64x8(0x1.8p48); }
  template <Precision P>
  static CRRELU_INLINE Sum<Float64x8> exp_reduced(Float64x8 shifted, Float64x8 r);

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
  CRRELU_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_##ps(a.v, b.v, c.v); }            \
  CRRELU_INLINE V min(V a, V b) { return _mm512_min_##ps(a.v, b.v); }                        \
  CRRELU_INLINE V max(V a, V b) { return _mm512_max_##ps(a.v, b.v); }                        \
  CRRELU_INLINE M greater(V a, V b) { return _mm512_cmp_##ps##_mask(a.v, b.v, _CMP_GT_OQ); } \
  CRRELU_INLINE V select(M m, V a, V b) { return _mm512_mask_mov_##ps(b.v, m, a.v); }        \
  CRRELU_INLINE V ldexp(V a, V n) { return _mm512_scalef_##ps(a.v, n.v); }
CRRELU_OPERATORS(Float32x16, __mmask16, ps)
CRRELU_OPERATORS(Float64x8, __mmask8, pd)
#undef CRRELU_OPERATORS

template <Precision P>
CRRELU_INLINE Sum<Float32x16> Float32x16::exp_reduced(Float32x16 shifted, Float32x16 r) {
  const __m512i j = _mm512_castps_si512(shifted.v);  // the permutes read its low four bits
  const Float32x16 high = _mm512_permutexvar_ps(j, _mm512_load_ps(kExp2Table16f));
  if constexpr (P == Precision::kHalf) {  // |r| <= ln(2)/16: relative error 9e-7
    return {high, high * r * fma(r, Float32x16(0x1.000148p-3f), Float32x16(-0x1.00029p-1f))};
  } else {  // 2.4e-9
    const Float32x16 rounded_off = _mm512_permutexvar_ps(j, _mm512_load_ps(kExp2Table16fLow));
    Float32x16 p = fma(r, Float32x16(-0x1.5556ep-6f), Float32x16(0x1.0001ecp-3f));
    p = fma(p, r, Float32x16(-0.5f));
    return {high, fma(high * r, p, rounded_off)};
  }
}

template <Precision P>
CRRELU_INLINE Sum<Float64x8> Float64x8::exp_reduced(Float64x8 shifted, Float64x8 r) {
  const __m512i j = _mm512_castpd_si512(shifted.v);
  const Float64x8 high =
      _mm512_permutex2var_pd(_mm512_load_pd(kExp2Table16d), j, _mm512_load_pd(kExp2Table16d + 8));
  const Float64x8 rounded_off = _mm512_permutex2var_pd(_mm512_load_pd(kExp2Table16dLow), j,
                                                       _mm512_load_pd(kExp2Table16dLow + 8));
  Float64x8 p =
      fma(r, Float64x8(0x1.6c17ed5c1f49ep-16), Float64x8(-0x1.11123d01366d4p-12));  // 1.4e-17
  p = fma(p, r, Float64x8(0x1.55555554e93b7p-9));
  p = fma(p, r, Float64x8(-0x1.555555547d216p-6));
  p = fma(p, r, Float64x8(0x1.0000000000001p-3));
  p = fma(p, r, Float64x8(-0x1.0000000000003p-1));
  return {high, fma(high * r, p, rounded_off)};
}

}  // namespace
}  // namespace crrelu
