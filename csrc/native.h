// The operators over a backend with kernels of its own. Written once; what a backend adds is how
// its tensors are made and its kernels called:
//
//     Guard                    that makes a device the current one
//     takes_rows(tensor, length)
//                              whether its kernels may read a tensor as rows with gaps between them
//     empty_output(like)       a tensor as `like`, without gaps
//     parameter(given, dense)  a Parameter, of Epsilons or of a Table, for a first input `dense`
//     forward(activation, inputs, parameter, output)
//     backward(activation, grad_output, inputs, parameter, wanted)
//                              the gradients wanted, of the inputs and then of epsilon
//
// where inputs, output and grad_output have no gaps and lie alike; or, where one epsilon or table
// serves all elements, inputs and grad_output are rows (dense.h), some with gaps between them, and
// the layout is (rows, 1, length).
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>
#include <initializer_list>
#include <tuple>
#include <utility>

#include "checks.h"
#include "cpu/kernels.h"
#include "dense.h"

namespace crrelu {

inline Storage storage_of(at::ScalarType type) {
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

/// The type that the kernels compute an input's elements in.
inline at::ScalarType arithmetic_of(const at::Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// What an activation has beside its inputs, as its kernels take it: the tensors of the numbers
/// that its channels' parameters are made of, epsilon first; or a table.
struct Parameter {
  std::array<at::Tensor, kMostNumbers> numbers;
  Layout layout;
  /// Of epsilon as it was given: its gradient is of this one too.
  at::ScalarType type;
};

/// What an operator is given for its parameter. `place`, (2, C), is location and scale of the bump.
struct Epsilons {
  const at::Tensor& epsilon;
  int64_t channel_dim;
  const at::Tensor& place = no_place();

  static const at::Tensor& no_place() {
    static const at::Tensor undefined;
    return undefined;
  }
  bool is_one() const { return epsilon.numel() == 1; }
  Layout layout(const at::Tensor& dense) const {
    return layout_of(dense, epsilon.numel(), channel_dim);
  }
};
struct Table {
  const at::Tensor& table;

  bool is_one() const { return true; }
  Layout layout(const at::Tensor& dense) const { return {1, 1, dense.numel()}; }
};

template <class Backend>
class Operators {
 public:
  static void implement(torch::Library& m) {
    m.impl("crrelu", crrelu);
    m.impl("crrelu.out", crrelu_out);
    m.impl("crrelu_backward", crrelu_backward);
    m.impl("crrelu_at", crrelu_at);
    m.impl("crrelu_at_backward", crrelu_at_backward);
    m.impl("crrelu_glu", crrelu_glu);
    m.impl("crrelu_glu_backward", crrelu_glu_backward);
    m.impl("tabulated", tabulated);
    m.impl("tabulated_backward", tabulated_backward);
  }

 private:
  using Tensor = at::Tensor;
  using Guard = typename Backend::Guard;

  /// Makes them lie alike, without gaps.
  template <size_t kInputs>
  static void lay_out(std::array<Tensor, kInputs>& inputs) {
    inputs[0] = without_gaps(inputs[0]);
    for (size_t k = 1; k < kInputs; ++k) inputs[k] = laid_out_as(inputs[k], inputs[0]);
  }

  /// The length of the rows that tensors are taken as, where some have gaps between rows; 0 where
  /// none has, or they must be copied.
  template <class Given>
  static int64_t row_length(std::initializer_list<at::TensorList> tensors, const Given& given) {
    if (!given.is_one()) return 0;
    int64_t length = 0;
    for (const at::TensorList list : tensors) {
      for (const Tensor& tensor : list) {
        if (tensor.is_contiguous()) continue;
        const int64_t its = rows_of(tensor).length;
        if (its == 0 || (length != 0 && its != length)) return 0;
        length = its;
      }
    }
    for (const at::TensorList list : tensors) {
      for (const Tensor& tensor : list) {
        if (length != 0 && !Backend::takes_rows(tensor, length)) return 0;
      }
    }
    return length;
  }

  template <class Given>
  static Parameter parameter(const Given& given, const Tensor& first, int64_t row_length) {
    auto parameter = Backend::parameter(given, first);
    if (row_length != 0) parameter.layout = {first.numel() / row_length, 1, row_length};
    return parameter;
  }

  template <size_t kInputs, class Given>
  static Tensor value(Activation activation, std::array<Tensor, kInputs> inputs,
                      const Given& given) {
    const Guard guard(inputs[0].device());
    const int64_t length = row_length({inputs}, given);
    const bool copied = length == 0 && !inputs[0].is_non_overlapping_and_dense();
    if (length == 0) lay_out(inputs);
    // A copy without gaps is nobody else's: it becomes the output.
    auto output = copied ? inputs[0] : Backend::empty_output(inputs[0]);
    Backend::forward(activation, inputs, parameter(given, inputs[0], length), output);
    return output;
  }

  template <size_t kInputs, class Given>
  static std::array<Tensor, kInputs + 1> gradients(Activation activation, const Tensor& grad_output,
                                                   std::array<Tensor, kInputs> inputs,
                                                   const Given& given,
                                                   const std::array<bool, kInputs + 1>& wanted) {
    const Guard guard(inputs[0].device());
    const int64_t length = row_length({inputs, grad_output}, given);
    Tensor grad = grad_output;
    if (length == 0) {
      lay_out(inputs);
      grad = laid_out_as(grad, inputs[0]);
    }
    return Backend::backward(activation, grad, inputs, parameter(given, inputs[0], length), wanted);
  }

  static Tensor crrelu(const Tensor& input, const Tensor& epsilon, int64_t channel_dim) {
    check_arguments("crrelu", "input", input, epsilon, channel_dim);
    return value(Activation::kPlain, std::array{input}, Epsilons{epsilon, channel_dim});
  }

  static Tensor& crrelu_out(const Tensor& input, const Tensor& epsilon, int64_t channel_dim,
                            Tensor& out) {
    check_arguments("crrelu", "input", input, epsilon, channel_dim);
    prepare_out(input, epsilon, out);
    const Guard guard(input.device());
    if (out.scalar_type() == input.scalar_type() && out.strides() == input.strides() &&
        input.is_non_overlapping_and_dense()) {
      const std::array<Tensor, 1> inputs{input};
      Backend::forward(Activation::kPlain, inputs,
                       Backend::parameter(Epsilons{epsilon, channel_dim}, input), out);
    } else {
      out.copy_(crrelu(input, epsilon, channel_dim));
    }
    return out;
  }

  static std::tuple<Tensor, Tensor> crrelu_backward(const Tensor& grad_output, const Tensor& input,
                                                    const Tensor& epsilon, int64_t channel_dim,
                                                    std::array<bool, 2> output_mask) {
    check_arguments("crrelu_backward", "input", input, epsilon, channel_dim);
    check_alike("crrelu_backward", "grad_output", grad_output, "input", input);
    auto grads = gradients(Activation::kPlain, grad_output, std::array{input},
                           Epsilons{epsilon, channel_dim}, output_mask);
    return {std::move(grads[0]), std::move(grads[1])};
  }

  static Tensor crrelu_at(const Tensor& input, const Tensor& epsilon, const Tensor& place,
                          int64_t channel_dim) {
    check_at_arguments("crrelu_at", input, epsilon, place, channel_dim);
    return value(Activation::kPlaced, std::array{input}, Epsilons{epsilon, channel_dim, place});
  }

  static std::tuple<Tensor, Tensor> crrelu_at_backward(const Tensor& grad_output,
                                                       const Tensor& input, const Tensor& epsilon,
                                                       const Tensor& place, int64_t channel_dim,
                                                       std::array<bool, 2> output_mask) {
    check_at_arguments("crrelu_at_backward", input, epsilon, place, channel_dim);
    check_alike("crrelu_at_backward", "grad_output", grad_output, "input", input);
    auto grads = gradients(Activation::kPlaced, grad_output, std::array{input},
                           Epsilons{epsilon, channel_dim, place}, output_mask);
    return {std::move(grads[0]), std::move(grads[1])};
  }

  static Tensor crrelu_glu(const Tensor& gate, const Tensor& up, const Tensor& epsilon,
                           int64_t channel_dim) {
    check_glu_arguments("crrelu_glu", gate, up, epsilon, channel_dim);
    return value(Activation::kGated, std::array{gate, up}, Epsilons{epsilon, channel_dim});
  }

  static std::tuple<Tensor, Tensor, Tensor> crrelu_glu_backward(
      const Tensor& grad_output, const Tensor& gate, const Tensor& up, const Tensor& epsilon,
      int64_t channel_dim, std::array<bool, 3> output_mask) {
    check_glu_arguments("crrelu_glu_backward", gate, up, epsilon, channel_dim);
    check_alike("crrelu_glu_backward", "grad_output", grad_output, "gate", gate);
    auto grads = gradients(Activation::kGated, grad_output, std::array{gate, up},
                           Epsilons{epsilon, channel_dim}, output_mask);
    return {std::move(grads[0]), std::move(grads[1]), std::move(grads[2])};
  }

  static Tensor tabulated(const Tensor& input, const Tensor& table) {
    check_table_arguments("tabulated", input, table);
    return value(Activation::kTabulated, std::array{input}, Table{table});
  }

  static Tensor tabulated_backward(const Tensor& grad_output, const Tensor& input,
                                   const Tensor& table) {
    check_table_arguments("tabulated_backward", input, table);
    check_alike("tabulated_backward", "grad_output", grad_output, "input", input);
    auto grads = gradients(Activation::kTabulated, grad_output, std::array{input}, Table{table},
                           {true, false});
    return std::move(grads[0]);
  }
};

}  // namespace crrelu
