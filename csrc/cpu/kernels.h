// One instruction set's kernels for one stored type, over raw pointers. No PyTorch here: these
// files also build alone.
#pragma once

#include <cstdint>

#include "storage.h"

namespace crrelu {

/// `input`, `output`, `grad_*` point to the stored type at any alignment; `epsilon` to its
/// Arithmetic type; sums are double. In the plain form one epsilon serves all elements; in the row
/// form the elements are a matrix with `stride` elements from row to row, and each column has its
/// own epsilon.
struct Kernels {
  /// output[i] = f(input[i]); output may be input. `stream` writes past the caches: for results too
  /// large for them.
  void (*forward)(const void* input, const void* epsilon, void* output, int64_t numel, bool stream);
  void (*forward_rows)(const void* input, const void* epsilon, void* output, int64_t rows,
                       int64_t columns, int64_t stride);

  /// grad_input[i] = grad_output[i] f'(input[i]); returns the sum of grad_output[i]
  /// df/depsilon(input[i]). grad_input may be null where it is not wanted; sum likewise. The order
  /// of the sum depends on numel alone.
  void (*backward)(const void* grad_output, const void* input, const void* epsilon,
                   void* grad_input, double* sum, int64_t numel, bool stream);
  /// sums[column] += that column's sum. Null as above.
  void (*backward_rows)(const void* grad_output, const void* input, const void* epsilon,
                        void* grad_input, double* sums, int64_t rows, int64_t columns,
                        int64_t stride);
};

enum class Storage { kFloat, kDouble, kBFloat16, kHalf };
inline constexpr int kStorages = 4;

/// Indexed by Storage. The AVX tables exist on x86-64 only.
const Kernels* kernels_scalar();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();

}  // namespace crrelu
