// Tensors as the kernels take them: without gaps, and all of a call's alike.
#pragma once

#include <ATen/ATen.h>
#include <ATen/WrapDimUtils.h>

#include "layout.h"

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
  return tensor.is_non_overlapping_and_dense() ? 0 : rows_of(tensor).gap();
}

/// For a tensor without gaps.
inline Layout layout_of(const at::Tensor& dense, int64_t channels, int64_t channel_dim) {
  const int64_t numel = dense.numel();
  if (channels == 1 || numel == 0) return {1, 1, numel};
  const int64_t inner =
      dense.stride(channel_dim);  // no gaps: what lies between neighbouring channels
  return {numel / (channels * inner), channels, inner};
}

/// A tensor of which some elements are looked at: as rows if it is such, else without gaps.
struct Sampled {
  at::Tensor tensor;
  Layout layout;
  Rows rows;

  Sampled(const at::Tensor& input, int64_t channels, int64_t channel_dim)
      : tensor(input), rows(rows_of(input)) {
    if (rows.length == 0) {
      tensor = without_gaps(input);
      rows = {input.numel(), input.numel()};
      layout = layout_of(tensor, channels, channel_dim);
    } else if (channels == 1) {
      layout = {1, 1, input.numel()};
    } else {
      const auto behind = input.sizes().slice(at::maybe_wrap_dim(channel_dim, input.dim()) + 1);
      const int64_t inner = c10::multiply_integers(behind);
      layout = {input.numel() / (channels * inner), channels, inner};
    }
  }
};

}  // namespace crrelu
