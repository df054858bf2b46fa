// Measuring densities while a network trains: of a tensor's elements a sample, counted in bins.
#pragma once

#include <cmath>
#include <cstdint>

#include "crrelu_math.h"
#include "layout.h"

namespace crrelu {

// In units of the scale, from the location: 256 bins, over 8 units on both sides. The counts also
// have a place for what lies below, above, and for NaN and infinities.
inline constexpr int kBinsPerUnit = 16, kBins = 2 * 8 * kBinsPerUnit;
inline constexpr int kBelow = 0, kAbove = kBins + 1, kNotFinite = kBins + 2, kCounts = kBins + 3;
/// Elements of each channel that are looked at, at the least, if there are so many.
inline constexpr int64_t kFewestSamples = 4;

namespace {

/// Where an element is counted: somewhere, too, where location and scale are no place.
template <class Real>
CRRELU_INLINE int slot_of(Real value, float location, float scale) {
  if (!(value - value == 0)) return kNotFinite;
  const float bin =
      std::floor((static_cast<float>(value) - location) * (kBinsPerUnit / scale)) + kBins / 2;
  return bin >= kBins ? kAbove : bin >= 0 ? static_cast<int>(bin) + 1 : kBelow;
}

}  // namespace

/// Of each channel's elements every so many-th one; odd, so that it does not always meet the same
/// place of a pattern.
struct Samples {
  int64_t stride, count;

  CRRELU_INLINE Samples(const Layout& layout, int64_t wanted) {
    const int64_t elements = layout.outer * layout.inner, each = wanted / layout.channels;
    stride = elements / (each < kFewestSamples ? kFewestSamples : each) | 1;
    count = (elements + stride - 1) / stride;
  }
  /// The place of a channel's k-th one in the tensor.
  CRRELU_INLINE int64_t index(const Layout& layout, int64_t channel, int64_t k) const {
    if (layout.channels == 1) return k * stride;  // saves the divisions, which took half the time
    const int64_t outer = k * stride / layout.inner, inner = k * stride % layout.inner;
    return (outer * layout.channels + channel) * layout.inner + inner;
  }
};

}  // namespace crrelu
