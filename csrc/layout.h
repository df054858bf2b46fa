// How a call's elements share epsilons: what backends, with torch and without it, speak of.
#pragma once

#include <cstdint>

namespace crrelu {

/// Which elements share an epsilon: the tensor, in the order of memory, is (outer, channels,
/// inner). With one epsilon for all that is (1, 1, numel).
struct Layout {
  int64_t outer, channels, inner;
};

}  // namespace crrelu
