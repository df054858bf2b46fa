// The operators on CUDA devices: tensors in, raw pointers to the kernels. Nothing here waits for
// the device, and all memory comes from torch's allocator: calls may be captured in graphs and made
// on several streams at once.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <array>

#include "../checks.h"
#include "../dense.h"
#include "kernels.h"

namespace crrelu::cuda {
namespace {

Storage storage_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Storage::kFloat;
    case at::kDouble:
      return Storage::kDouble;
    case at::kBFloat16:
      return Storage::kBFloat16;
    default:
      return Storage::kHalf;
  }
}

/// The current device, which a guard has made the tensors', and its current stream.
Machine machine() {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                                        stream.device_index()));
  return {multiprocessors, stream.stream()};
}

/// What an activation has beside its inputs: epsilons, or a table as the kernels take it.
struct Parameter {
  at::Tensor values;
  Layout layout;

  static Parameter epsilon(const at::Tensor& epsilon, const at::Tensor& input,
                           int64_t channel_dim) {
    return {epsilon.contiguous(), layout_of(input, epsilon, channel_dim)};
  }
  static Parameter table(const at::Tensor& table_, const at::Tensor& input) {
    const auto table = table_.contiguous();
    const auto storage = storage_of(input.scalar_type());
    const auto type = storage == Storage::kDouble ? at::kDouble : at::kFloat;
    const int64_t knots = table.size(1);
    auto values = at::empty({kTableHeader + 4 * (knots - 1)}, table.options().dtype(type));
    prepare_table(machine(), table.const_data_ptr(), table.scalar_type() == at::kDouble,
                  static_cast<int32_t>(knots), storage, values.mutable_data_ptr());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return {std::move(values), {1, 1, input.numel()}};
  }
};

/// Inputs have no gaps and lie alike.
Operands operands_of(at::TensorList inputs, const Parameter& parameter) {
  Operands operands{};
  for (size_t k = 0; k < inputs.size(); ++k) operands.inputs[k] = inputs[k].const_data_ptr();
  operands.epsilon = parameter.values.const_data_ptr();
  operands.epsilon_is_float = parameter.values.scalar_type() == at::kFloat;
  operands.layout = parameter.layout;
  return operands;
}

/// f of `inputs`, which have no gaps and lie alike, into `output`, which does so too.
void forward(Activation activation, at::TensorList inputs, const Parameter& parameter,
             const at::Tensor& output) {
  if (output.numel() == 0) return;
  kernels(activation, storage_of(output.scalar_type()))
      .forward(machine(), operands_of(inputs, parameter), output.mutable_data_ptr());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

/// The gradients wanted, of the inputs and then of epsilon; the others stay undefined.
template <size_t kWanted>
std::array<at::Tensor, kWanted> backward(Activation activation, const at::Tensor& grad_output,
                                         at::TensorList inputs, const Parameter& parameter,
                                         const std::array<bool, kWanted>& wanted) {
  std::array<at::Tensor, kWanted> grads;
  if (std::none_of(wanted.begin(), wanted.end(), [](bool want) { return want; })) return grads;
  std::array<void*, kMostInputs> grad_inputs{};
  for (size_t k = 0; k < inputs.size(); ++k) {
    if (!wanted[k]) continue;
    grads[k] = at::empty_like(inputs[0]);
    grad_inputs[k] = grads[k].mutable_data_ptr();
  }
  const bool empty = inputs[0].numel() == 0;
  void* grad_epsilon = nullptr;
  if (wanted.back()) {
    grads.back() = empty ? at::zeros_like(parameter.values) : at::empty_like(parameter.values);
    grad_epsilon = grads.back().mutable_data_ptr();
  }
  if (empty) return grads;

  const auto operands = operands_of(inputs, parameter);
  const auto here = machine();
  const auto& passes = kernels(activation, storage_of(grad_output.scalar_type()));
  const int64_t count = wanted.back() ? passes.slots(operands.layout, here.multiprocessors) : 0;
  at::Tensor slots;
  if (count > 0) slots = at::empty({count}, parameter.values.options().dtype(at::kDouble));
  passes.backward(here, operands, grad_output.const_data_ptr(), grad_inputs.data(), grad_epsilon,
                  count > 0 ? slots.mutable_data_ptr<double>() : nullptr);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grads;
}

at::Tensor crrelu_cuda(const at::Tensor& input, const at::Tensor& epsilon, int64_t channel_dim) {
  check_arguments(input, epsilon, channel_dim);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto dense = without_gaps(input);
  auto output = at::empty_like(dense);
  forward(Activation::kPlain, {dense}, Parameter::epsilon(epsilon, dense, channel_dim), output);
  return output;
}

at::Tensor& crrelu_out_cuda(const at::Tensor& input, const at::Tensor& epsilon, int64_t channel_dim,
                            at::Tensor& out) {
  check_arguments(input, epsilon, channel_dim);
  prepare_out(input, epsilon, out);
  const c10::cuda::CUDAGuard guard(input.device());
  if (out.scalar_type() == input.scalar_type() && out.strides() == input.strides() &&
      input.is_non_overlapping_and_dense()) {
    forward(Activation::kPlain, {input}, Parameter::epsilon(epsilon, input, channel_dim), out);
  } else {
    out.copy_(crrelu_cuda(input, epsilon, channel_dim));
  }
  return out;
}

std::tuple<at::Tensor, at::Tensor> crrelu_backward_cuda(const at::Tensor& grad_output,
                                                        const at::Tensor& input,
                                                        const at::Tensor& epsilon,
                                                        int64_t channel_dim,
                                                        std::array<bool, 2> output_mask) {
  check_arguments(input, epsilon, channel_dim);
  check_grad_output(grad_output, input);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto dense = without_gaps(input);
  auto grads = backward(Activation::kPlain, laid_out_as(grad_output, dense), {dense},
                        Parameter::epsilon(epsilon, dense, channel_dim), output_mask);
  return {std::move(grads[0]), std::move(grads[1])};
}

at::Tensor crrelu_glu_cuda(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& epsilon,
                           int64_t channel_dim) {
  check_glu_arguments(gate, up, epsilon, channel_dim);
  const c10::cuda::CUDAGuard guard(gate.device());
  const auto dense = without_gaps(gate);
  auto output = at::empty_like(dense);
  forward(Activation::kGated, {dense, laid_out_as(up, dense)},
          Parameter::epsilon(epsilon, dense, channel_dim), output);
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> crrelu_glu_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& gate, const at::Tensor& up,
    const at::Tensor& epsilon, int64_t channel_dim, std::array<bool, 3> output_mask) {
  check_glu_arguments(gate, up, epsilon, channel_dim);
  check_alike("crrelu_glu_backward", "grad_output", grad_output, "gate", gate);
  const c10::cuda::CUDAGuard guard(gate.device());
  const auto dense = without_gaps(gate);
  auto grads =
      backward(Activation::kGated, laid_out_as(grad_output, dense), {dense, laid_out_as(up, dense)},
               Parameter::epsilon(epsilon, dense, channel_dim), output_mask);
  return {std::move(grads[0]), std::move(grads[1]), std::move(grads[2])};
}

at::Tensor tabulated_cuda(const at::Tensor& input, const at::Tensor& table) {
  check_table_arguments("tabulated", input, table);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto dense = without_gaps(input);
  auto output = at::empty_like(dense);
  forward(Activation::kTabulated, {dense}, Parameter::table(table, dense), output);
  return output;
}

at::Tensor tabulated_backward_cuda(const at::Tensor& grad_output, const at::Tensor& input,
                                   const at::Tensor& table) {
  check_table_arguments("tabulated_backward", input, table);
  check_alike("tabulated_backward", "grad_output", grad_output, "input", input);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto dense = without_gaps(input);
  auto grads = backward(Activation::kTabulated, laid_out_as(grad_output, dense), {dense},
                        Parameter::table(table, dense), std::array<bool, 2>{true, false});
  return std::move(grads[0]);
}

}  // namespace

TORCH_LIBRARY_IMPL(crrelu_ext, CUDA, m) {
  m.impl("crrelu", crrelu_cuda);
  m.impl("crrelu.out", crrelu_out_cuda);
  m.impl("crrelu_backward", crrelu_backward_cuda);
  m.impl("crrelu_glu", crrelu_glu_cuda);
  m.impl("crrelu_glu_backward", crrelu_glu_backward_cuda);
  m.impl("tabulated", tabulated_cuda);
  m.impl("tabulated_backward", tabulated_backward_cuda);
}

}  // namespace crrelu::cuda
