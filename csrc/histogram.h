// Measuring densities while a network trains: of a tensor's elements a sample, counted in bins.
#pragma once

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
  const float bin = (static_cast<float>(value) - location) * (kBinsPerUnit / scale);
  constexpr int kHalf = kBins / 2;
  if (bin >= kHalf) return kAbove;
  if (!(bin >= -kHalf)) return kBelow;
  const int toward_zero = static_cast<int>(bin);  // floor is a call where there is no SSE 4.1
  return toward_zero - (bin < static_cast<float>(toward_zero)) + kHalf + 1;
}

}  // namespace

/// A channel's elements are cut into equal stretches, and of each stretch one is looked at: which,
/// is as good as random, so that no pattern of the tensor is met in the same place again and again,
/// as its columns are where a stretch is as long as a row; but the same in every call.
struct Samples {
  int64_t stride, count;
  Rows rows;

  CRRELU_INLINE Samples(const Layout& layout, Rows rows, int64_t wanted) : rows(rows) {
    const int64_t elements = layout.outer * layout.inner, each = wanted / layout.channels;
    stride = elements / (each < kFewestSamples ? kFewestSamples : each);
    if (stride == 0) stride = 1;
    count = elements / stride;
  }
  /// The place of the k-th one among a channel's elements.
  CRRELU_INLINE int64_t place(int64_t k) const {
    return k * stride + static_cast<int64_t>(scrambled(k) * static_cast<uint64_t>(stride) >> 32);
  }
  /// The place of a channel's k-th one in the tensor.
  CRRELU_INLINE int64_t index(const Layout& layout, int64_t channel, int64_t k) const {
    int64_t at = place(k);
    if (layout.channels > 1)  // saves the divisions, which took half the time
      at = (at / layout.inner * layout.channels + channel) * layout.inner + at % layout.inner;
    return rows.gap() == 0 ? at : at + at / rows.length * rows.gap();
  }

 private:
  /// 32 bits, each of which depends on all of k's: the finalizer of MurmurHash3.
  static CRRELU_INLINE uint64_t scrambled(int64_t k) {
    auto bits = static_cast<uint32_t>(k) + 0x9e3779b9u;
    bits = (bits ^ bits >> 16) * 0x85ebca6bu;
    bits = (bits ^ bits >> 13) * 0xc2b2ae35u;
    return bits ^ bits >> 16;
  }
};

}  // namespace crrelu
