// The AVX-512 intrinsics that the kernels use, lane by lane in portable code, after the processor's
// manual: so kernels_avx512.cpp runs, slowly, on a processor without them. It includes this in the
// place of the compiler's header, which still brings the types; these functions are found first,
// since they are in the kernels' namespace.
#pragma once

#include_next <immintrin.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#undef _mm256_mask_storeu_epi16
#undef _mm512_cmp_pd_mask
#undef _mm512_cmp_ps_mask
#undef _mm512_cvtps_ph
#undef _mm512_insertf32x4
#undef _mm512_insertf64x4
#undef _mm512_mask_i32gather_ps
#undef _mm512_setr_epi32
#undef _mm512_setr_epi64
#undef _mm512_shuffle_ps
#undef _mm512_ternarylogic_epi32

// Inlined, all this takes minutes to compile.
#define CRRELU_EMULATED static __attribute__((noinline, unused))

namespace crrelu {
namespace emulated {

/// Of a register, which it is made of and gives.
template <class T, class V>
struct Lanes : std::array<T, sizeof(V) / sizeof(T)> {
  Lanes() = default;
  Lanes(const V& v) { std::memcpy(this, &v, sizeof(V)); }
  operator V() const {
    V v;
    std::memcpy(&v, this, sizeof(V));
    return v;
  }
};

template <class T, class V, class Op>
V unary(V a, const Op& op) {
  Lanes<T, V> x(a);
  for (T& lane : x) lane = static_cast<T>(op(lane));
  return x;
}
template <class T, class V, class Op>
V binary(V a, V b, const Op& op) {
  Lanes<T, V> x(a), y(b);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<T>(op(x[i], y[i]));
  return x;
}
template <class V, class T>
V broadcast(T value) {
  Lanes<T, V> x;
  x.fill(value);
  return x;
}
template <class To, class From>
To cast(const From& from) {
  To to{};
  std::memcpy(&to, &from, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
  return to;
}
template <class V>
V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
void store(void* p, const V& v) {
  std::memcpy(p, &v, sizeof(V));
}
template <class T, class V>
V load_masked(unsigned mask, const void* p) {
  Lanes<T, V> x;
  for (size_t i = 0; i < x.size(); ++i) x[i] = mask >> i & 1 ? static_cast<const T*>(p)[i] : T(0);
  return x;
}
template <class T, class V>
void store_masked(void* p, unsigned mask, V v) {
  const Lanes<T, V> x(v);
  for (size_t i = 0; i < x.size(); ++i) {
    if (mask >> i & 1) static_cast<T*>(p)[i] = x[i];
  }
}
template <class T, class V>
V fma(V a, V b, V c) {
  Lanes<T, V> x(a), y(b), z(c);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::fma(x[i], y[i], z[i]);
  return x;
}
template <class T>
T scalef(T x, T power) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  if (x != x || power != power) return x + power;
  if (power == infinity) return x * infinity;
  if (power == -infinity) return x * 0;
  return std::ldexp(x, static_cast<int>(std::fmax(-9999, std::fmin(9999, std::floor(power)))));
}
template <class T, class V>
unsigned compare(V a, V b, int predicate) {
  const Lanes<T, V> x(a), y(b);
  unsigned mask = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const bool holds = predicate == _CMP_GT_OQ ? x[i] > y[i] : !(x[i] < y[i]);  // _CMP_NLT_UQ
    mask |= static_cast<unsigned>(holds) << i;
  }
  return mask;
}
template <class T, class V>
V blend(V where_zero, unsigned mask, V where_one) {
  Lanes<T, V> x(where_zero), y(where_one);
  for (size_t i = 0; i < x.size(); ++i) x[i] = mask >> i & 1 ? y[i] : x[i];
  return x;
}
/// Lanes of a, then of b, by the low bits of the indices.
template <class T, class Index, class V>
V permute(V a, __m512i indices, V b) {
  const Lanes<T, V> x(a), y(b);
  const Lanes<Index, __m512i> index(indices);
  Lanes<T, V> result;
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t from = index[i] % (2 * x.size());
    result[i] = from < x.size() ? x[from] : y[from - x.size()];
  }
  return result;
}
/// In each 128 bits, the lanes `from(i)` of a, then of b.
template <class T, class V, class From>
V in_quarters(V a, V b, const From& from) {
  const Lanes<T, V> x(a), y(b);
  Lanes<T, V> result;
  constexpr size_t kQuarter = 16 / sizeof(T);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t lane = from(i % kQuarter), base = i / kQuarter * kQuarter;
    result[i] = lane < kQuarter ? x[base + lane] : y[base + lane - kQuarter];
  }
  return result;
}
template <class T, class V>
V unpack(V a, V b, bool high) {
  constexpr size_t kQuarter = 16 / sizeof(T);
  return in_quarters<T>(
      a, b, [&](size_t i) { return (high ? kQuarter / 2 : 0) + i / 2 + i % 2 * kQuarter; });
}
template <class V, class Part>
V insert(V into, const Part& part, int place) {
  std::memcpy(reinterpret_cast<char*>(&into) + place * sizeof(Part), &part, sizeof(Part));
  return into;
}
template <class To, class T, class From, class V>
V converted(From from) {
  const Lanes<T, From> x(from);
  Lanes<To, V> result;
  for (size_t i = 0; i < x.size(); ++i) result[i] = static_cast<To>(x[i]);
  return result;
}
/// To nearest, ties to even.
template <class T, class V, class From>
V to_integers(From from) {
  return converted<int32_t, T, From, V>(unary<T>(
      from, [](T x) { return std::fabs(x) < T(1u << 31) ? std::nearbyint(x) : T(INT32_MIN); }));
}

}  // namespace emulated

#define CRRELU_ARITHMETIC(ps, V, T, Mask)                                                          \
  CRRELU_EMULATED V _mm512_add_##ps(V a, V b) {                                                    \
    return emulated::binary<T>(a, b, [](T x, T y) { return x + y; });                              \
  }                                                                                                \
  CRRELU_EMULATED V _mm512_sub_##ps(V a, V b) {                                                    \
    return emulated::binary<T>(a, b, [](T x, T y) { return x - y; });                              \
  }                                                                                                \
  CRRELU_EMULATED V _mm512_mul_##ps(V a, V b) {                                                    \
    return emulated::binary<T>(a, b, [](T x, T y) { return x * y; });                              \
  }                                                                                                \
  CRRELU_EMULATED V _mm512_div_##ps(V a, V b) {                                                    \
    return emulated::binary<T>(a, b, [](T x, T y) { return x / y; });                              \
  }                                                                                                \
  CRRELU_EMULATED V _mm512_min_##ps(V a, V b) {                                                    \
    return emulated::binary<T>(a, b, [](T x, T y) { return x < y ? x : y; });                      \
  }                                                                                                \
  CRRELU_EMULATED V _mm512_max_##ps(V a, V b) {                                                    \
    return emulated::binary<T>(a, b, [](T x, T y) { return x > y ? x : y; });                      \
  }                                                                                                \
  CRRELU_EMULATED V _mm512_floor_##ps(V a) {                                                       \
    return emulated::unary<T>(a, [](T x) { return std::floor(x); });                               \
  }                                                                                                \
  CRRELU_EMULATED V _mm512_scalef_##ps(V a, V n) {                                                 \
    return emulated::binary<T>(a, n, emulated::scalef<T>);                                         \
  }                                                                                                \
  CRRELU_EMULATED V _mm512_fmadd_##ps(V a, V b, V c) { return emulated::fma<T>(a, b, c); }         \
  CRRELU_EMULATED Mask _mm512_cmp_##ps##_mask(V a, V b, int predicate) {                           \
    return static_cast<Mask>(emulated::compare<T>(a, b, predicate));                               \
  }                                                                                                \
  CRRELU_EMULATED V _mm512_mask_mov_##ps(V a, Mask m, V b) { return emulated::blend<T>(a, m, b); } \
  CRRELU_EMULATED V _mm512_set1_##ps(T x) { return emulated::broadcast<V>(x); }                    \
  CRRELU_EMULATED V _mm512_loadu_##ps(const T* p) { return emulated::load<V>(p); }                 \
  CRRELU_EMULATED void _mm512_storeu_##ps(T* p, V v) { emulated::store(p, v); }                    \
  CRRELU_EMULATED void _mm512_stream_##ps(T* p, V v) { emulated::store(p, v); }                    \
  CRRELU_EMULATED V _mm512_maskz_loadu_##ps(Mask m, const T* p) {                                  \
    return emulated::load_masked<T, V>(m, p);                                                      \
  }                                                                                                \
  CRRELU_EMULATED void _mm512_mask_storeu_##ps(T* p, Mask m, V v) {                                \
    emulated::store_masked<T>(p, m, v);                                                            \
  }                                                                                                \
  CRRELU_EMULATED V _mm512_unpacklo_##ps(V a, V b) { return emulated::unpack<T>(a, b, false); }    \
  CRRELU_EMULATED V _mm512_unpackhi_##ps(V a, V b) { return emulated::unpack<T>(a, b, true); }
CRRELU_ARITHMETIC(ps, __m512, float, __mmask16)
CRRELU_ARITHMETIC(pd, __m512d, double, __mmask8)
#undef CRRELU_ARITHMETIC

#define CRRELU_INTEGERS(epi32, epu32, T)                                                       \
  CRRELU_EMULATED __m512i _mm512_set1_##epi32(T x) { return emulated::broadcast<__m512i>(x); } \
  CRRELU_EMULATED __m512i _mm512_add_##epi32(__m512i a, __m512i b) {                           \
    return emulated::binary<T>(a, b, [](T x, T y) { return x + y; });                          \
  }                                                                                            \
  CRRELU_EMULATED __m512i _mm512_sub_##epi32(__m512i a, __m512i b) {                           \
    return emulated::binary<T>(a, b, [](T x, T y) { return x - y; });                          \
  }                                                                                            \
  CRRELU_EMULATED __m512i _mm512_max_##epu32(__m512i a, __m512i b) {                           \
    return emulated::binary<T>(a, b, [](T x, T y) { return x > y ? x : y; });                  \
  }                                                                                            \
  CRRELU_EMULATED __m512i _mm512_slli_##epi32(__m512i a, unsigned n) {                         \
    return emulated::unary<T>(a, [n](T x) { return x << n; });                                 \
  }                                                                                            \
  CRRELU_EMULATED __m512i _mm512_srli_##epi32(__m512i a, unsigned n) {                         \
    return emulated::unary<T>(a, [n](T x) { return x >> n; });                                 \
  }
CRRELU_INTEGERS(epi32, epu32, uint32_t)
CRRELU_INTEGERS(epi64, epu64, uint64_t)
#undef CRRELU_INTEGERS

CRRELU_EMULATED __m512i _mm512_and_si512(__m512i a, __m512i b) {
  return emulated::binary<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x & y; });
}
CRRELU_EMULATED __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
  emulated::Lanes<uint32_t, __m512i> x(a), y(b), z(c);
  for (size_t i = 0; i < x.size(); ++i) {
    uint32_t result = 0;
    for (int bit = 0; bit < 32; ++bit) {
      const int place = (x[i] >> bit & 1) << 2 | (y[i] >> bit & 1) << 1 | (z[i] >> bit & 1);
      result |= static_cast<uint32_t>(table >> place & 1) << bit;
    }
    x[i] = result;
  }
  return x;
}
template <class... Ints>
__m512i _mm512_setr_epi32(Ints... lanes) {
  return emulated::cast<__m512i>(std::array<int32_t, 16>{lanes...});
}
template <class... Ints>
__m512i _mm512_setr_epi64(Ints... lanes) {
  return emulated::cast<__m512i>(std::array<int64_t, 8>{lanes...});
}
CRRELU_EMULATED __m512 _mm512_setzero_ps() { return _mm512_set1_ps(0); }

inline __m512i _mm512_castps_si512(__m512 a) { return emulated::cast<__m512i>(a); }
inline __m512i _mm512_castpd_si512(__m512d a) { return emulated::cast<__m512i>(a); }
inline __m512 _mm512_castsi512_ps(__m512i a) { return emulated::cast<__m512>(a); }
inline __m512d _mm512_castsi512_pd(__m512i a) { return emulated::cast<__m512d>(a); }
inline __m512i _mm512_castsi256_si512(__m256i a) { return emulated::cast<__m512i>(a); }
inline __m256i _mm512_castsi512_si256(__m512i a) { return emulated::cast<__m256i>(a); }
inline __m512 _mm512_castps128_ps512(__m128 a) { return emulated::cast<__m512>(a); }
inline __m512d _mm512_castpd256_pd512(__m256d a) { return emulated::cast<__m512d>(a); }

inline __m512i _mm512_loadu_si512(const void* p) { return emulated::load<__m512i>(p); }
inline __m512 _mm512_load_ps(const float* p) { return emulated::load<__m512>(p); }
inline __m512i _mm512_load_si512(const void* p) { return emulated::load<__m512i>(p); }
inline __m256d _mm256_loadu_pd(const double* p) { return emulated::load<__m256d>(p); }
inline __m256i _mm256_loadu_si256(const __m256i* p) { return emulated::load<__m256i>(p); }
inline void _mm512_storeu_si512(void* p, __m512i v) { emulated::store(p, v); }
inline void _mm512_store_si512(void* p, __m512i v) { emulated::store(p, v); }
inline void _mm512_stream_si512(__m512i* p, __m512i v) { emulated::store(p, v); }
inline void _mm256_storeu_si256(__m256i* p, __m256i v) { emulated::store(p, v); }
inline void _mm256_store_si256(__m256i* p, __m256i v) { emulated::store(p, v); }
inline void _mm256_stream_si256(__m256i* p, __m256i v) { emulated::store(p, v); }
CRRELU_EMULATED __m256i _mm256_maskz_loadu_epi16(__mmask16 m, const void* p) {
  return emulated::load_masked<uint16_t, __m256i>(m, p);
}
CRRELU_EMULATED void _mm256_mask_storeu_epi16(void* p, __mmask16 m, __m256i v) {
  emulated::store_masked<uint16_t>(p, m, v);
}
CRRELU_EMULATED __m512 _mm512_mask_i32gather_ps(__m512 zero, __mmask16 m, __m512i indices,
                                                const float* p, int scale) {
  emulated::Lanes<float, __m512> x(zero);
  const emulated::Lanes<int32_t, __m512i> index(indices);
  for (size_t i = 0; i < x.size(); ++i) {
    if (m >> i & 1) x[i] = p[index[i] * scale / 4];
  }
  return x;
}

CRRELU_EMULATED __m512i _mm512_maskz_permutexvar_epi16(__mmask32 m, __m512i indices, __m512i a) {
  const __m512i moved = emulated::permute<uint16_t, uint16_t>(a, indices, a);
  return emulated::blend<uint16_t>(__m512i{}, m, moved);
}
CRRELU_EMULATED __m512i _mm512_permutexvar_epi16(__m512i indices, __m512i a) {
  return emulated::permute<uint16_t, uint16_t>(a, indices, a);
}
CRRELU_EMULATED __m512i _mm512_permutexvar_epi32(__m512i indices, __m512i a) {
  return emulated::permute<uint32_t, uint32_t>(a, indices, a);
}
CRRELU_EMULATED __m512 _mm512_permutexvar_ps(__m512i indices, __m512 a) {
  return emulated::permute<float, uint32_t>(a, indices, a);
}
CRRELU_EMULATED __m512 _mm512_permutex2var_ps(__m512 a, __m512i indices, __m512 b) {
  return emulated::permute<float, uint32_t>(a, indices, b);
}
CRRELU_EMULATED __m512d _mm512_permutex2var_pd(__m512d a, __m512i indices, __m512d b) {
  return emulated::permute<double, uint64_t>(a, indices, b);
}
CRRELU_EMULATED __m512i _mm512_permutex2var_epi64(__m512i a, __m512i indices, __m512i b) {
  return emulated::permute<uint64_t, uint64_t>(a, indices, b);
}
CRRELU_EMULATED __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int places) {
  return emulated::in_quarters<float>(
      a, b, [places](size_t i) { return (places >> 2 * i & 3) + (i < 2 ? 0 : 4); });
}
CRRELU_EMULATED __m512 _mm512_insertf32x4(__m512 a, __m128 b, int place) {
  return emulated::insert(a, b, place);
}
CRRELU_EMULATED __m512d _mm512_insertf64x4(__m512d a, __m256d b, int place) {
  return emulated::insert(a, b, place);
}

CRRELU_EMULATED __m512i _mm512_cvtps_epi32(__m512 a) {
  return emulated::to_integers<float, __m512i>(a);
}
CRRELU_EMULATED __m256i _mm512_cvtpd_epi32(__m512d a) {
  return emulated::to_integers<double, __m256i>(a);
}
CRRELU_EMULATED __m512 _mm512_cvtph_ps(__m256i a) {
  return emulated::converted<float, _Float16, __m256i, __m512>(a);
}
CRRELU_EMULATED __m256i _mm512_cvtps_ph(__m512 a, int) {
  return emulated::converted<_Float16, float, __m512, __m256i>(a);
}

}  // namespace crrelu
