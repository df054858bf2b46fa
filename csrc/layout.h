// How a call's elements share epsilons, and what a table is: what backends, with torch and without
// it, speak of.
#pragma once

#include <cstdint>

namespace crrelu {

/// Which elements share an epsilon: the tensor, in the order of memory, is (outer, channels,
/// inner). With one epsilon for all that is (1, 1, numel).
struct Layout {
  int64_t outer, channels, inner;
};

/// A tensor as rows without gaps, in the order of its dimensions: elements of each, and from one to
/// the next.
struct Rows {
  int64_t length, stride;

  constexpr int64_t gap() const { return stride - length; }
};

/// How a table is handed to the kernels: these numbers, then the intervals' coefficients, from the
/// left, in powers of the distance from the interval's left end, counted in intervals.
enum TableHeader { kLower, kUpper, kPerUnit, kIntervals, kTableHeader };

}  // namespace crrelu
