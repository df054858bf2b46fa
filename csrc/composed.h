// The formula composed of differentiable ATen operators: what transforms, second derivatives and
// devices without kernels of ours are given.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <tuple>

namespace crrelu {

at::Tensor crrelu_composed(const at::Tensor& input, const at::Tensor& epsilon, int64_t channel_dim);

std::tuple<at::Tensor, at::Tensor> crrelu_backward_composed(const at::Tensor& grad_output,
                                                            const at::Tensor& input,
                                                            const at::Tensor& epsilon,
                                                            int64_t channel_dim,
                                                            std::array<bool, 2> output_mask);

/// What the backward pass's own backward pass gives: the gradients for grad_output, input and
/// epsilon, given those for grad_input and grad_epsilon; undefined means zero, here and there.
std::array<at::Tensor, 3> crrelu_double_backward_composed(const at::Tensor& grad_grad_input,
                                                          const at::Tensor& grad_grad_epsilon,
                                                          const at::Tensor& grad_output,
                                                          const at::Tensor& input,
                                                          const at::Tensor& epsilon,
                                                          int64_t channel_dim);

at::Tensor crrelu_at_composed(const at::Tensor& input, const at::Tensor& epsilon,
                              const at::Tensor& place, int64_t channel_dim);
std::tuple<at::Tensor, at::Tensor> crrelu_at_backward_composed(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& epsilon,
    const at::Tensor& place, int64_t channel_dim, std::array<bool, 2> output_mask);

at::Tensor crrelu_glu_composed(const at::Tensor& gate, const at::Tensor& up,
                               const at::Tensor& epsilon, int64_t channel_dim);

std::tuple<at::Tensor, at::Tensor, at::Tensor> crrelu_glu_backward_composed(
    const at::Tensor& grad_output, const at::Tensor& gate, const at::Tensor& up,
    const at::Tensor& epsilon, int64_t channel_dim, std::array<bool, 3> output_mask);

at::Tensor tabulated_composed(const at::Tensor& input, const at::Tensor& table);

at::Tensor tabulated_backward_composed(const at::Tensor& grad_output, const at::Tensor& input,
                                       const at::Tensor& table);

}  // namespace crrelu
