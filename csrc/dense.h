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

/// Elements from one row to the next, a row being the last dimension, where rows have no gaps and
/// lie at equal distances, as those of a part of a matrix's columns; else -1. Not where they begin
/// in neighbours, as sliding windows do: whose output torch lays out by columns.
inline int64_t row_stride(const at::Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (last < 1 || tensor.stride(last) != 1) return -1;
  int64_t rows = 1, stride = 0;
  for (int64_t dim = last - 1; dim >= 0; --dim) {
    if (tensor.size(dim) == 1) continue;
    if (rows == 1) stride = tensor.stride(dim);
    if (tensor.stride(dim) != stride * rows) return -1;
    rows *= tensor.size(dim);
  }
  return rows > 1 && stride == 1 ? -1 : stride;
}

}  // namespace crrelu
