// Argument checks that all backends share.
#pragma once

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/native/Resize.h>

namespace crrelu {

/// Which elements share an epsilon: the tensor, in the order of memory, is (outer, channels,
/// inner). With one epsilon for all that is (1, 1, numel).
struct Layout {
  int64_t outer, channels, inner;
};

/// As Python says it: float32, not float.
inline auto dtype_name(const at::Tensor& tensor) {
  return c10::getDtypeNames(tensor.scalar_type()).first;
}

inline bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

/// Throws an error that names the argument unless crrelu is defined on these.
inline void check_arguments(const at::Tensor& input, const at::Tensor& epsilon,
                            int64_t channel_dim) {
  TORCH_CHECK_VALUE(input.layout() == at::kStrided, "crrelu: input has layout ", input.layout(),
                    "; only strided (dense) tensors are allowed");
  TORCH_CHECK_TYPE(is_supported(input.scalar_type()), "crrelu: input has dtype ", dtype_name(input),
                   "; allowed are float32, float64, bfloat16 and float16");
  TORCH_CHECK_VALUE(epsilon.layout() == at::kStrided, "crrelu: epsilon has layout ",
                    epsilon.layout(), "; only strided (dense) tensors are allowed");
  TORCH_CHECK_TYPE(
      epsilon.scalar_type() == at::kFloat || epsilon.scalar_type() == input.scalar_type(),
      "crrelu: epsilon has dtype ", dtype_name(epsilon),
      "; allowed are float32 and the input's dtype, ", dtype_name(input));
  TORCH_CHECK(input.device() == epsilon.device(), "crrelu: epsilon is on ", epsilon.device(),
              " but input is on ", input.device(), "; both must be on the same device");
  TORCH_CHECK_VALUE(epsilon.dim() == 1, "crrelu: epsilon has shape ", epsilon.sizes(),
                    "; allowed are (1,) and (C,), C the input's size along channel_dim");
  if (epsilon.sym_numel() == 1) return;
  TORCH_CHECK_INDEX(-input.dim() <= channel_dim && channel_dim < input.dim(),
                    "crrelu: channel_dim is ", channel_dim, ", but input has ", input.dim(),
                    " dimensions; an epsilon of ", epsilon.sym_numel(),
                    " values needs an input with that dimension");
  TORCH_CHECK_VALUE(input.sym_size(channel_dim) == epsilon.sym_numel(), "crrelu: epsilon has ",
                    epsilon.sym_numel(), " values, but input has size ",
                    input.sym_size(channel_dim), " along channel_dim ", channel_dim,
                    "; allowed are that many or 1");
}

/// For the backward pass: grad_output must be as the input is.
inline void check_grad_output(const at::Tensor& grad_output, const at::Tensor& input) {
  TORCH_CHECK_VALUE(grad_output.sym_sizes() == input.sym_sizes(),
                    "crrelu_backward: grad_output has shape ", grad_output.sym_sizes(),
                    "; allowed is the input's, ", input.sym_sizes());
  TORCH_CHECK_TYPE(grad_output.scalar_type() == input.scalar_type(),
                   "crrelu_backward: grad_output has dtype ", dtype_name(grad_output),
                   "; allowed is the input's, ", dtype_name(input));
  TORCH_CHECK(grad_output.device() == input.device(), "crrelu_backward: grad_output is on ",
              grad_output.device(), "; allowed is the input's device, ", input.device());
}

/// Makes `out` ready to take the result, as torch's own operators do: checks that the result can be
/// cast to its dtype and that writing it does not change what is still to be read, and gives it the
/// input's shape.
inline void prepare_out(const at::Tensor& input, const at::Tensor& epsilon, const at::Tensor& out) {
  TORCH_CHECK_VALUE(out.layout() == at::kStrided, "crrelu: out has layout ", out.layout(),
                    "; only strided (dense) tensors are allowed");
  TORCH_CHECK(out.device() == input.device(), "crrelu: out is on ", out.device(),
              " but input is on ", input.device(), "; both must be on the same device");
  TORCH_CHECK_TYPE(at::canCast(input.scalar_type(), out.scalar_type()), "crrelu: out has dtype ",
                   dtype_name(out), ", to which a result of dtype ", dtype_name(input),
                   " can't be cast; allowed are floating-point and complex dtypes");
  at::assert_no_internal_overlap(out);
  at::native::resize_output(out, input.sizes());
  at::assert_no_partial_overlap(out, input);
  at::assert_no_overlap(out, epsilon);
}

/// For a tensor without gaps.
inline Layout layout_of(const at::Tensor& dense, const at::Tensor& epsilon, int64_t channel_dim) {
  const int64_t channels = epsilon.numel(), numel = dense.numel();
  if (channels == 1 || numel == 0) return {1, 1, numel};
  const int64_t inner =
      dense.stride(channel_dim);  // no gaps: what lies between neighbouring channels
  return {numel / (channels * inner), channels, inner};
}

}  // namespace crrelu
