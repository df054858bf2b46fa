#include "kernels.h"
#include "loops.h"
#include "vec_scalar.h"

namespace crrelu {

const Kernels* kernels_scalar(Activation activation) {
  return kernels_of<Float64x1, Float64x1>(activation);
}

}  // namespace crrelu
