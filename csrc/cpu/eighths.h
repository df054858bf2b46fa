// What the vocabularies of 256 bits and less share: 2^(j/8) in floats, of which so many entries are
// looked up at once, and no table of doubles, where a lookup reaches only two lanes. How they look
// up is their own: high_part(powers, power) and lost(powers, shifted).
#pragma once

#include "powers.h"

namespace crrelu {
namespace {

constexpr float kShifter = 0x1.8p20f;
constexpr auto kEntries = table_less<8>(kPowers, 0.0f);
constexpr auto kTable = table<uint32_t, 8, 20>(kPowers);
constexpr auto kTableLow = table_less<8>(kPowersLow, kShifter * 0x1p-29f);

/// exp(-r/2) times a power, for floats.
template <Precision P, class V>
CRRELU_INLINE Significand<P, V> exp_by_eighths(V power, V shifted, V r,
                                               const typename V::Powers& powers) {
  const V high = high_part(powers, power);
  if constexpr (P == Precision::kFull) {
    V p = fma(r, V(0x1.555acep-9f), V(-0x1.555d88p-6f));  // 2.4e-10
    p = fma(p, r, V(0.125f));
    p = fma(p, r, V(-0.5f));
    return {high, fma(r, p, lost(powers, shifted))};
  } else {
    V p = fma(r, V(-0x1.555b7cp-6f), V(0x1.0007bp-3f));  // 3.8e-8
    p = fma(p, r, V(-0.5f));
    return fma(high * r, p, high);
  }
}

/// The same for doubles, |r| <= ln 2.
template <class V>
CRRELU_INLINE Corrected<V> exp_by_ones(V power, V r, const typename V::Powers& powers) {
  V p = fma(r, V(-0x1.af4de97ca4194p-37), V(0x1.28a2ca617b969p-32));
  p = fma(p, r, V(-0x1.71de0231960ebp-28));  // 9.9e-18
  p = fma(p, r, V(0x1.a019a6611cad5p-24));
  p = fma(p, r, V(-0x1.a01a01abe7fe1p-20));
  p = fma(p, r, V(0x1.6c16c17f46982p-16));
  p = fma(p, r, V(-0x1.11111111100dcp-12));
  p = fma(p, r, V(0x1.55555555520a4p-9));
  p = fma(p, r, V(-0x1.5555555555557p-6));
  p = fma(p, r, V(0x1.0000000000005p-3));
  p = fma(p, r, V(-0.5));
  return {high_part(powers, power), fma(r, p, V(0))};  // r = 0 leaves 0, not -0: f(-0) is -0 so
}

/// 2^floor(n) times a, in two factors, so that a result may be subnormal; from 2^kLeast down
/// nothing is left of a.
template <class V>
CRRELU_INLINE V ldexp_in_halves(V a, V n, typename V::real least) {
  const V whole = floor(max(n, V(least)));
  const V half = floor(whole * V(0.5f));
  return a * power_of_two(half) * power_of_two(whole - half);
}

}  // namespace
}  // namespace crrelu
