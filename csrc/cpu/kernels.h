// One instruction set's kernels for one stored type, over raw pointers. No PyTorch here: these
// files also build alone.
#pragma once

#include <cstdint>

#include "storage.h"

namespace crrelu {

/// `inputs` are as many as the activation takes, `grad_inputs` likewise, each null where it is not
/// wanted. They, `output` and `grad_output` point to the stored type at any alignment; `parameter`
/// to the numbers that the activation's parameter is made of (crrelu_math.h), epsilon first, or to
/// a table, of its Arithmetic type; sums are double. In the plain form one parameter serves all
/// elements; in the row form, which a table has not, the elements are a matrix with `stride`
/// elements from row to row, and each column has its own numbers.
struct Kernels {
  /// output[i] = f(inputs[0][i], ...); output may be an input. `stream` writes past the caches: for
  /// results too large for them. `only`: no element of the tensor has another parameter; then a
  /// quicker way may be taken, whose last bit may be another than the row form's. Both mean the
  /// same to backward.
  void (*forward)(const void* const* inputs, const void* const* parameter, void* output,
                  int64_t numel, bool stream, bool only);
  void (*forward_rows)(const void* const* inputs, const void* const* parameter, void* output,
                       int64_t rows, int64_t columns, int64_t stride);

  /// grad_inputs[k][i] = grad_output[i] df/dinputs[k]; *sum = the sum of grad_output[i]
  /// df/depsilon, if sum is not null. The order of the sum depends on numel alone. Something must
  /// be wanted.
  void (*backward)(const void* grad_output, const void* const* inputs, const void* const* parameter,
                   void* const* grad_inputs, double* sum, int64_t numel, bool stream, bool only);
  /// sums[column] += that column's sum. Null as above.
  void (*backward_rows)(const void* grad_output, const void* const* inputs,
                        const void* const* parameter, void* const* grad_inputs, double* sums,
                        int64_t rows, int64_t columns, int64_t stride);
};

enum class Storage { kFloat, kDouble, kBFloat16, kHalf };
inline constexpr int kStorages = 4;

/// The activations of crrelu_math.h and tabulated.h.
enum class Activation { kPlain, kGated, kTabulated, kPlaced };
/// Columns of the row form that are gone through together, one row after the other.
inline constexpr int64_t kTileColumns = 512;
/// At the most: the tensors it is of, and the numbers that its parameter is made of.
inline constexpr int kMostInputs = 2, kMostNumbers = 3;

/// Indexed by Storage. The AVX tables exist on x86-64 only, those of NEON on aarch64.
const Kernels* kernels_scalar(Activation activation);
const Kernels* kernels_neon(Activation activation);
const Kernels* kernels_avx2(Activation activation);
const Kernels* kernels_avx512(Activation activation);

}  // namespace crrelu
