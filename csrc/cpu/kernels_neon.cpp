#include "kernels.h"

#if defined(__aarch64__)
#include "loops.h"
#include "vec_neon.h"

namespace crrelu {

const Kernels* kernels_neon(Activation activation) {
  return kernels_of<Float32x4, Float64x2>(activation);
}

}  // namespace crrelu
#endif
