#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

// From here on, and only here, the compiler may use these instructions: no compiler flag, so every
// file of the extension is built alike, and no system header is compiled for a processor that may
// not be there.
#if defined(CRRELU_EMULATED_INTRINSICS)  // tests/cpp/emulated: by the instructions that all have
#elif defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "vec_avx512.h"
// clang-format off: the loops use the vocabulary
#include "loops.h"
// clang-format on

namespace crrelu {

const Kernels* kernels_avx512(Activation activation) {
  return kernels_of<Float32x16, Float64x8>(activation);
}

}  // namespace crrelu

#if defined(CRRELU_EMULATED_INTRINSICS)
#elif defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
