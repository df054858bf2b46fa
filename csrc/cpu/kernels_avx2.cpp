#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

// From here on, and only here, the compiler may use these instructions: no compiler flag, so every
// file of the extension is built alike, and no system header is compiled for a processor that may
// not be there.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "vec_avx2.h"
// clang-format off: the loops use the vocabulary
#include "loops.h"
// clang-format on

namespace crrelu {

const Kernels* kernels_avx2(Activation activation) {
  return kernels_of<Float32x8, Float64x4>(activation);
}

}  // namespace crrelu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
