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

/// A tensor as rows without gaps, in the order of its dimensions: elements of each, and from one to
/// the next.
struct Rows {
  int64_t length, stride;
};

/// The longest rows there are, as those of a part of a matrix's columns. Of length 0 where they lie
/// at unequal distances, or overlap but are not all the same one: torch may lay the output out in
/// another order then.
inline Rows rows_of(const at::Tensor& tensor) {
  int64_t length = 1, dim = tensor.dim() - 1;
  for (; dim >= 0 && (tensor.size(dim) == 1 || tensor.stride(dim) == length); --dim)
    length *= tensor.size(dim);
  if (dim < 0) return {length, length};
  const int64_t stride = tensor.stride(dim);
  if (stride != 0 && stride < length) return {0, 0};
  for (int64_t rows = 1; dim >= 0; --dim) {
    if (tensor.size(dim) == 1) continue;
    if (tensor.stride(dim) != stride * rows) return {0, 0};
    rows *= tensor.size(dim);
  }
  return {length, stride};
}

/// Elements between rows, of a tensor that is made of such.
inline int64_t gap_between_rows(const at::Tensor& tensor) {
  if (tensor.is_non_overlapping_and_dense()) return 0;
  const Rows rows = rows_of(tensor);
  return rows.stride - rows.length;
}

}  // namespace crrelu
