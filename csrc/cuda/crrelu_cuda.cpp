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

#include "../native.h"
#include "kernels.h"

namespace crrelu::cuda {
namespace {

/// The current device, which a guard has made the tensors', and its current stream.
Machine machine() {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                                        stream.device_index()));
  return {multiprocessors, stream.stream()};
}

/// The backend that native.h asks for.
struct Cuda {
  using Guard = c10::cuda::CUDAGuard;

  static bool takes_rows(const at::Tensor& tensor, int64_t length) {
    const int64_t size = tensor.element_size(), stride = length + gap_between_rows(tensor);
    const auto whole_packs = [](int64_t bytes) { return bytes % kPackBytes == 0; };
    return whole_packs(reinterpret_cast<intptr_t>(tensor.const_data_ptr())) &&
           whole_packs(length * size) && whole_packs(stride * size) &&
           tensor.numel() * size <= kMostPacks * kPackBytes;
  }

  static at::Tensor empty_output(const at::Tensor& like) {
    return like.is_non_overlapping_and_dense() ? at::empty_like(like)
                                               : at::empty(like.sizes(), like.options());
  }

  static Parameter parameter(const Epsilons& given, const at::Tensor& dense) {
    Parameter parameter{
        {given.epsilon.contiguous()}, given.layout(dense), given.epsilon.scalar_type()};
    if (given.place.defined()) {
      const auto place = given.place.to(arithmetic_of(dense)).contiguous();
      for (int k : {0, 1}) parameter.numbers[1 + k] = place.select(0, k);
    }
    return parameter;
  }

  /// The table as TableOf takes it.
  static Parameter parameter(const Table& given, const at::Tensor& dense) {
    const auto table = given.table.contiguous();
    const auto type = arithmetic_of(dense);
    const int64_t knots = table.size(1);
    auto values = at::empty({kTableHeader + 4 * (knots - 1)}, table.options().dtype(type));
    prepare_table(machine(), table.const_data_ptr(), table.scalar_type() == at::kDouble,
                  static_cast<int32_t>(knots), storage_of(dense.scalar_type()),
                  values.mutable_data_ptr());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return {{std::move(values)}, given.layout(dense), type};
  }

  static void forward(Activation activation, at::TensorList inputs, const Parameter& parameter,
                      const at::Tensor& output) {
    if (output.numel() == 0) return;
    kernels(activation, storage_of(output.scalar_type()))
        .forward(machine(), operands_of(inputs, parameter), output.mutable_data_ptr());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <size_t kWanted>
  static std::array<at::Tensor, kWanted> backward(Activation activation,
                                                  const at::Tensor& grad_output,
                                                  at::TensorList inputs, const Parameter& parameter,
                                                  const std::array<bool, kWanted>& wanted) {
    std::array<at::Tensor, kWanted> grads;
    if (std::none_of(wanted.begin(), wanted.end(), [](bool want) { return want; })) return grads;
    std::array<void*, kMostInputs> grad_inputs{};
    for (size_t k = 0; k < inputs.size(); ++k) {
      if (!wanted[k]) continue;
      grads[k] = empty_output(inputs[0]);
      grad_inputs[k] = grads[k].mutable_data_ptr();
    }
    const bool empty = inputs[0].numel() == 0;
    const auto& epsilon = parameter.numbers[0];
    void* grad_epsilon = nullptr;
    if (wanted.back()) {
      grads.back() = empty ? at::zeros_like(epsilon) : at::empty_like(epsilon);
      grad_epsilon = grads.back().mutable_data_ptr();
    }
    if (empty) return grads;

    const auto operands = operands_of(inputs, parameter);
    const auto here = machine();
    const auto& passes = kernels(activation, storage_of(grad_output.scalar_type()));
    const int64_t count = wanted.back() ? passes.slots(operands.layout, here.multiprocessors) : 0;
    at::Tensor slots;
    if (count > 0) slots = at::empty({count}, epsilon.options().dtype(at::kDouble));
    passes.backward(here, operands, source_of(grad_output), grad_inputs.data(), grad_epsilon,
                    count > 0 ? slots.mutable_data_ptr<double>() : nullptr);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return grads;
  }

 private:
  static Source source_of(const at::Tensor& tensor) {
    return {tensor.const_data_ptr(), gap_between_rows(tensor)};
  }

  static Operands operands_of(at::TensorList inputs, const Parameter& parameter) {
    Operands operands{};
    for (size_t k = 0; k < inputs.size(); ++k) operands.inputs[k] = source_of(inputs[k]);
    for (size_t k = 0; k < parameter.numbers.size(); ++k) {
      const auto& numbers = parameter.numbers[k];
      if (numbers.defined()) operands.numbers[k] = numbers.const_data_ptr();
    }
    operands.epsilon_is_float = parameter.type == at::kFloat;
    operands.layout = parameter.layout;
    return operands;
  }
};

void count_cuda(const at::Tensor& input, const at::Tensor& place, int64_t samples,
                int64_t channel_dim, at::Tensor& counts) {
  check_count_arguments(input, place, samples, channel_dim, counts);
  if (input.numel() == 0 || gradients_are_computed()) return;
  const Cuda::Guard guard(input.device());
  const Sampled sampled(input, place.size(1), channel_dim);
  const auto where = place.contiguous();
  count(machine(), storage_of(input.scalar_type()), sampled.tensor.const_data_ptr(), sampled.layout,
        where.const_data_ptr<float>(), Samples(sampled.layout, sampled.rows, samples),
        counts.mutable_data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

TORCH_LIBRARY_IMPL(crrelu_ext, CUDA, m) {
  Operators<Cuda>::implement(m);
  m.impl("count_", count_cuda);
}

}  // namespace crrelu::cuda
