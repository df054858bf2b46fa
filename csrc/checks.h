// Argument checks that all backends share.
#pragma once

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/native/Resize.h>
#include <torch/csrc/autograd/graph_task.h>

#include <string>

#include "histogram.h"
#include "layout.h"

namespace crrelu {

/// As Python says it: float32, not float.
inline auto dtype_name(const at::Tensor& tensor) {
  return c10::getDtypeNames(tensor.scalar_type()).first;
}

inline std::string dimensions(const at::Tensor& tensor) {
  return std::to_string(tensor.dim()) + (tensor.dim() == 1 ? " dimension" : " dimensions");
}

inline bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

inline void check_dense(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, op, ": ", name, " has layout ",
                    tensor.layout(), "; only strided (dense) tensors are allowed");
}

/// Throws an error that names the argument unless the operator is defined on this input and
/// epsilon.
inline void check_arguments(const char* op, const char* name, const at::Tensor& input,
                            const at::Tensor& epsilon, int64_t channel_dim) {
  check_dense(op, name, input);
  TORCH_CHECK_TYPE(is_supported(input.scalar_type()), op, ": ", name, " has dtype ",
                   dtype_name(input), "; allowed are float32, float64, bfloat16 and float16");
  check_dense(op, "epsilon", epsilon);
  TORCH_CHECK_TYPE(
      epsilon.scalar_type() == at::kFloat || epsilon.scalar_type() == input.scalar_type(), op,
      ": epsilon has dtype ", dtype_name(epsilon),
      input.scalar_type() == at::kFloat ? "; allowed is that of "
                                        : "; allowed are float32 and that of ",
      name, ", ", dtype_name(input));
  TORCH_CHECK(input.device() == epsilon.device(), op, ": epsilon is on ", epsilon.device(), " but ",
              name, " is on ", input.device(), "; both must be on the same device");
  TORCH_CHECK_VALUE(epsilon.dim() == 1, op, ": epsilon has shape ", epsilon.sym_sizes(),
                    "; allowed are (1,) and (C,), C the size of ", name, " along channel_dim");
  if (epsilon.sym_numel() == 1) return;
  TORCH_CHECK_INDEX(-input.dim() <= channel_dim && channel_dim < input.dim(), op,
                    ": channel_dim is ", channel_dim, ", but ", name, " has ", dimensions(input),
                    "; an epsilon of ", epsilon.sym_numel(),
                    " values lies along that dimension of ", name);
  TORCH_CHECK_VALUE(input.sym_size(channel_dim) == epsilon.sym_numel(), op, ": epsilon has ",
                    epsilon.sym_numel(), " values, but ", name, " has size ",
                    input.sym_size(channel_dim), " along channel_dim ", channel_dim,
                    "; allowed are that many or 1");
}

/// `tensor` must be as `like` is: of its shape, dtype and device.
inline void check_alike(const char* op, const char* name, const at::Tensor& tensor,
                        const char* like_name, const at::Tensor& like) {
  check_dense(op, name, tensor);
  TORCH_CHECK_VALUE(tensor.sym_sizes() == like.sym_sizes(), op, ": ", name, " has shape ",
                    tensor.sym_sizes(), "; allowed is that of ", like_name, ", ", like.sym_sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), op, ": ", name, " has dtype ",
                   dtype_name(tensor), "; allowed is that of ", like_name, ", ", dtype_name(like));
  TORCH_CHECK(tensor.device() == like.device(), op, ": ", name, " is on ", tensor.device(),
              "; allowed is the device of ", like_name, ", ", like.device());
}

inline void check_glu_arguments(const char* op, const at::Tensor& gate, const at::Tensor& up,
                                const at::Tensor& epsilon, int64_t channel_dim) {
  check_arguments(op, "gate", gate, epsilon, channel_dim);
  check_alike(op, "up", up, "gate", gate);
}

/// For the placed activation: `place` is location and scale, for each epsilon.
inline void check_at_arguments(const char* op, const at::Tensor& input, const at::Tensor& epsilon,
                               const at::Tensor& place, int64_t channel_dim) {
  check_arguments(op, "input", input, epsilon, channel_dim);
  check_dense(op, "place", place);
  TORCH_CHECK_TYPE(place.scalar_type() == at::kFloat || place.scalar_type() == at::kDouble, op,
                   ": place has dtype ", dtype_name(place), "; allowed are float32 and float64");
  TORCH_CHECK_VALUE(
      place.dim() == 2 && place.sym_size(0) == 2 && place.sym_size(1) == epsilon.sym_numel(), op,
      ": place has shape ", place.sym_sizes(), "; allowed is (2, ", epsilon.sym_numel(),
      "), location and scale for each value of epsilon");
  TORCH_CHECK(input.device() == place.device(), op, ": place is on ", place.device(),
              " but input is on ", input.device(), "; both must be on the same device");
}

/// For the tabulated activation: `table` holds knots, as (3, knots): where they are, equally
/// spaced; f there; f' there.
inline void check_table_arguments(const char* op, const at::Tensor& input,
                                  const at::Tensor& table) {
  check_dense(op, "input", input);
  TORCH_CHECK_TYPE(is_supported(input.scalar_type()), op, ": input has dtype ", dtype_name(input),
                   "; allowed are float32, float64, bfloat16 and float16");
  check_dense(op, "table", table);
  TORCH_CHECK_TYPE(table.scalar_type() == at::kFloat || table.scalar_type() == at::kDouble, op,
                   ": table has dtype ", dtype_name(table), "; allowed are float32 and float64");
  TORCH_CHECK_VALUE(table.dim() == 2 && table.sym_size(0) == 3 && table.sym_size(1) >= 2, op,
                    ": table has shape ", table.sym_sizes(),
                    "; allowed is (3, knots), with at least 2 knots");
  TORCH_CHECK(input.device() == table.device(), op, ": table is on ", table.device(),
              " but input is on ", input.device(), "; both must be on the same device");
}

/// For what counts: `place` is location and scale, `counts` the bins, of each channel.
inline void check_count_arguments(const at::Tensor& input, const at::Tensor& place, int64_t samples,
                                  int64_t channel_dim, const at::Tensor& counts) {
  TORCH_CHECK_TYPE(is_supported(input.scalar_type()), "count_: input has dtype ", dtype_name(input),
                   "; allowed are float32, float64, bfloat16 and float16");
  TORCH_CHECK_VALUE(place.dim() == 2 && place.sym_size(0) == 2 && place.scalar_type() == at::kFloat,
                    "count_: place has shape ", place.sym_sizes(), " and dtype ", dtype_name(place),
                    "; allowed is (2, C), location and scale of each channel, float32");
  const auto channels = place.sym_size(1);
  TORCH_CHECK_VALUE(samples > 0, "count_: samples is ", samples, "; allowed are 1 and more");
  TORCH_CHECK_VALUE(counts.dim() == 2 && counts.sym_size(0) == channels &&
                        counts.sym_size(1) == kCounts && counts.scalar_type() == at::kLong,
                    "count_: counts has shape ", counts.sym_sizes(), " and dtype ",
                    dtype_name(counts), "; allowed is (", channels, ", ", kCounts, "), int64");
  TORCH_CHECK_VALUE(counts.is_contiguous(), "count_: counts has gaps; allowed is none");
  TORCH_CHECK(input.device() == place.device() && input.device() == counts.device(),
              "count_: input is on ", input.device(), ", place on ", place.device(),
              " and counts on ", counts.device(), "; all must be on the same device");
  if (channels == 1) return;
  TORCH_CHECK_INDEX(-input.dim() <= channel_dim && channel_dim < input.dim(),
                    "count_: channel_dim is ", channel_dim, ", but input has ", dimensions(input));
  TORCH_CHECK_VALUE(input.sym_size(channel_dim) == channels, "count_: place has ", channels,
                    " channels, but input has size ", input.sym_size(channel_dim),
                    " along channel_dim ", channel_dim, "; allowed are that many or 1");
}

/// Whether this is in a backward pass: a layer that is evaluated again there, as a checkpointed one
/// is, has had its elements counted.
inline bool gradients_are_computed() { return torch::autograd::get_current_graph_task_id() != -1; }

/// Makes `out` ready to take the result, as torch's own operators do: checks that the result can be
/// cast to its dtype and that writing it does not change what is still to be read, and gives it the
/// input's shape.
inline void prepare_out(const at::Tensor& input, const at::Tensor& epsilon, const at::Tensor& out) {
  check_dense("crrelu", "out", out);
  TORCH_CHECK(out.device() == input.device(), "crrelu: out is on ", out.device(),
              " but input is on ", input.device(), "; both must be on the same device");
  TORCH_CHECK_TYPE(at::canCast(input.scalar_type(), out.scalar_type()), "crrelu: out has dtype ",
                   dtype_name(out), ", to which a result of dtype ", dtype_name(input),
                   " can't be cast; allowed are floating-point and complex dtypes");
  const auto check_overlap = [&] {
    at::assert_no_internal_overlap(out);
    at::assert_no_partial_overlap(out, input);
    at::assert_no_overlap(out, epsilon);
  };
  check_overlap();  // an error changes nothing
  at::native::resize_output(out, input.sizes());
  check_overlap();
}

}  // namespace crrelu
