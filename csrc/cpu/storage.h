// What lies in memory, and what it is computed in.
#pragma once

#include <cstdint>

namespace crrelu {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

/// The type in which a stored type's epsilon is handed to the kernels: float for the 16-bit types.
template <class S>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};

}  // namespace crrelu
