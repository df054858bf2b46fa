#include "kernels.h"
#include "loops.h"
#include "vec_scalar.h"

namespace crrelu {

const Kernels* kernels_scalar() { return Tables<CRReLU, Float64x1, Float64x1>::kernels; }

}  // namespace crrelu
