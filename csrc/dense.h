// Tensors as the kernels take them: without gaps, and all of a call's alike.
#pragma once

#include <ATen/ATen.h>

namespace crrelu {

/// The tensor itself, or a copy without gaps.
inline at::Tensor without_gaps(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? tensor : at::empty_like(tensor).copy_(tensor);
}

/// The tensor itself if its elements lie in memory just as those of `like`, which has no gaps; else
/// a copy that does.
inline at::Tensor laid_out_as(const at::Tensor& tensor, const at::Tensor& like) {
  for (int64_t dim = 0; dim < like.dim(); ++dim) {
    if (like.size(dim) > 1 && tensor.stride(dim) != like.stride(dim))
      return at::empty_like(like).copy_(tensor);
  }
  return tensor;
}

}  // namespace crrelu
