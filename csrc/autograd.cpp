// Derivatives: hand-written graph nodes, which are the quickest route through autograd and the only
// one that also serves torch.func, forward-mode AD and double backward. First derivatives take the
// kernels; where a transform is at work, and for second derivatives, the composed formula
// differentiates itself.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "composed.h"
#include "node.h"
#include "operators.h"

namespace crrelu {
namespace {

using at::Tensor;
using torch::autograd::compute_requires_grad;
using torch::autograd::variable_list;

template <class... Tensors>
bool has_forward_grad(const Tensors&... tensors) {
  return (torch::autograd::isFwGradDefined(tensors) || ...);
}

struct CrreluBackward {
  static constexpr auto kName = "CrreluBackward";
  static constexpr size_t kSaved = 2;  // input, epsilon

  static variable_list gradients(const variable_list& grads, const std::array<Tensor, 2>& saved,
                                 int64_t channel_dim, std::array<bool, 2> wanted) {
    if (!grads[0].defined()) return variable_list(2);
    auto [grad_input, grad_epsilon] =
        crrelu_backward_op().call(grads[0], saved[0], saved[1], channel_dim, wanted);
    return {std::move(grad_input), std::move(grad_epsilon)};
  }
};

struct CrreluBackwardBackward {
  static constexpr auto kName = "CrreluBackwardBackward";
  static constexpr size_t kSaved = 3;  // grad_output, input, epsilon

  static variable_list gradients(const variable_list& grads, const std::array<Tensor, 3>& saved,
                                 int64_t channel_dim, std::array<bool, 3>) {
    auto result = crrelu_double_backward_composed(grads[0], grads[1], saved[0], saved[1], saved[2],
                                                  channel_dim);
    return {std::move(result[0]), std::move(result[1]), std::move(result[2])};
  }
};

struct CrreluAtBackward {
  static constexpr auto kName = "CrreluAtBackward";
  static constexpr size_t kSaved = 3;  // input, epsilon, place

  static variable_list gradients(const variable_list& grads, const std::array<Tensor, 3>& saved,
                                 int64_t channel_dim, std::array<bool, 3> wanted) {
    if (!grads[0].defined()) return variable_list(3);
    auto [grad_input, grad_epsilon] = crrelu_at_backward_op().call(
        grads[0], saved[0], saved[1], saved[2], channel_dim, {wanted[0], wanted[1]});
    return {std::move(grad_input), std::move(grad_epsilon), Tensor()};
  }
};

struct CrreluGluBackward {
  static constexpr auto kName = "CrreluGluBackward";
  static constexpr size_t kSaved = 3;  // gate, up, epsilon

  static variable_list gradients(const variable_list& grads, const std::array<Tensor, 3>& saved,
                                 int64_t channel_dim, std::array<bool, 3> wanted) {
    if (!grads[0].defined()) return variable_list(3);
    auto [grad_gate, grad_up, grad_epsilon] =
        crrelu_glu_backward_op().call(grads[0], saved[0], saved[1], saved[2], channel_dim, wanted);
    return {std::move(grad_gate), std::move(grad_up), std::move(grad_epsilon)};
  }
};

Tensor crrelu_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& epsilon,
                       int64_t channel_dim) {
  if (has_forward_grad(input, epsilon)) return crrelu_composed(input, epsilon, channel_dim);
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    output = crrelu_op().redispatch(keys & c10::after_autograd_keyset, input, epsilon, channel_dim);
  }
  if (compute_requires_grad(input, epsilon))
    FormulaNode<CrreluBackward>::record(channel_dim, {output}, input, epsilon);
  return output;
}

std::tuple<Tensor, Tensor> crrelu_backward_autograd(c10::DispatchKeySet keys,
                                                    const Tensor& grad_output, const Tensor& input,
                                                    const Tensor& epsilon, int64_t channel_dim,
                                                    std::array<bool, 2> output_mask) {
  if (has_forward_grad(grad_output, input, epsilon))
    return crrelu_backward_composed(grad_output, input, epsilon, channel_dim, output_mask);
  std::tuple<Tensor, Tensor> grads;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    grads = crrelu_backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, input,
                                            epsilon, channel_dim, output_mask);
  }
  if (compute_requires_grad(grad_output, input, epsilon)) {
    FormulaNode<CrreluBackwardBackward>::record(
        channel_dim, {std::get<0>(grads), std::get<1>(grads)}, grad_output, input, epsilon);
  }
  return grads;
}

Tensor crrelu_at_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& epsilon,
                          const Tensor& place, int64_t channel_dim) {
  TORCH_CHECK(!compute_requires_grad(place) && !has_forward_grad(place),
              "crrelu_at: place requires grad, but has no derivative; detach it");
  if (has_forward_grad(input, epsilon))
    return crrelu_at_composed(input, epsilon, place, channel_dim);
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    output = crrelu_at_op().redispatch(keys & c10::after_autograd_keyset, input, epsilon, place,
                                       channel_dim);
  }
  if (compute_requires_grad(input, epsilon))
    FormulaNode<CrreluAtBackward>::record(channel_dim, {output}, input, epsilon, place);
  return output;
}

/// Second derivatives of this and of the gated form are rare enough that the composed formula,
/// which differentiates itself, takes the place of a node.
std::tuple<Tensor, Tensor> crrelu_at_backward_autograd(c10::DispatchKeySet keys,
                                                       const Tensor& grad_output,
                                                       const Tensor& input, const Tensor& epsilon,
                                                       const Tensor& place, int64_t channel_dim,
                                                       std::array<bool, 2> output_mask) {
  if (compute_requires_grad(grad_output, input, epsilon) ||
      has_forward_grad(grad_output, input, epsilon)) {
    return crrelu_at_backward_composed(grad_output, input, epsilon, place, channel_dim,
                                       output_mask);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return crrelu_at_backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, input,
                                            epsilon, place, channel_dim, output_mask);
}

Tensor crrelu_glu_autograd(c10::DispatchKeySet keys, const Tensor& gate, const Tensor& up,
                           const Tensor& epsilon, int64_t channel_dim) {
  if (has_forward_grad(gate, up, epsilon))
    return crrelu_glu_composed(gate, up, epsilon, channel_dim);
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    output = crrelu_glu_op().redispatch(keys & c10::after_autograd_keyset, gate, up, epsilon,
                                        channel_dim);
  }
  if (compute_requires_grad(gate, up, epsilon))
    FormulaNode<CrreluGluBackward>::record(channel_dim, {output}, gate, up, epsilon);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> crrelu_glu_backward_autograd(
    c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& gate, const Tensor& up,
    const Tensor& epsilon, int64_t channel_dim, std::array<bool, 3> output_mask) {
  if (compute_requires_grad(grad_output, gate, up, epsilon) ||
      has_forward_grad(grad_output, gate, up, epsilon)) {
    return crrelu_glu_backward_composed(grad_output, gate, up, epsilon, channel_dim, output_mask);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return crrelu_glu_backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, gate,
                                             up, epsilon, channel_dim, output_mask);
}

struct TabulatedBackward {
  static constexpr auto kName = "TabulatedBackward";
  static constexpr size_t kSaved = 2;  // input, table

  static variable_list gradients(const variable_list& grads, const std::array<Tensor, 2>& saved,
                                 int64_t, std::array<bool, 2> wanted) {
    if (!grads[0].defined() || !wanted[0]) return variable_list(2);
    return {tabulated_backward_op().call(grads[0], saved[0], saved[1]), Tensor()};
  }
};

Tensor tabulated_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& table) {
  TORCH_CHECK(!compute_requires_grad(table) && !has_forward_grad(table),
              "tabulated: table requires grad, but has no derivative; detach it");
  if (has_forward_grad(input)) return tabulated_composed(input, table);
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    output = tabulated_op().redispatch(keys & c10::after_autograd_keyset, input, table);
  }
  if (compute_requires_grad(input))
    FormulaNode<TabulatedBackward>::record(0, {output}, input, table);
  return output;
}

Tensor tabulated_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad_output,
                                   const Tensor& input, const Tensor& table) {
  if (compute_requires_grad(grad_output, input) || has_forward_grad(grad_output, input))
    return tabulated_backward_composed(grad_output, input, table);
  at::AutoDispatchBelowADInplaceOrView guard;
  return tabulated_backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, input,
                                            table);
}

/// Writing into a tensor is for use without gradients, as out= is in torch.
void check_no_gradient(const char* name, const Tensor& tensor) {
  TORCH_CHECK(!compute_requires_grad(tensor) && !has_forward_grad(tensor), "crrelu: ", name,
              " requires grad, but out= and in-place forms have no derivative; use crrelu(input, "
              "epsilon), or this under"
              " torch.no_grad()");
}

Tensor& crrelu_out_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& epsilon,
                            int64_t channel_dim, Tensor& out) {
  check_no_gradient("input", input);
  check_no_gradient("epsilon", epsilon);
  check_no_gradient("out", out);
  at::AutoDispatchBelowAutograd guard;
  return crrelu_out_op().redispatch(keys & c10::after_autograd_keyset, input, epsilon, channel_dim,
                                    out);
}

/// In inference mode, too, which skips what is above: what autograd has saved of a normal tensor is
/// no longer what it was.
Tensor& crrelu_out_version(c10::DispatchKeySet keys, const Tensor& input, const Tensor& epsilon,
                           int64_t channel_dim, Tensor& out) {
  at::AutoDispatchBelowADInplaceOrView guard;
  crrelu_out_op().redispatch(keys & c10::after_ADInplaceOrView_keyset, input, epsilon, channel_dim,
                             out);
  torch::autograd::impl::bump_version(out);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(crrelu_ext, ADInplaceOrView, m) {
  m.impl("crrelu.out", TORCH_FN(crrelu_out_version));
}

TORCH_LIBRARY_IMPL(crrelu_ext, Autograd, m) {
  m.impl("crrelu", TORCH_FN(crrelu_autograd));
  m.impl("crrelu.out", TORCH_FN(crrelu_out_autograd));
  m.impl("crrelu_backward", TORCH_FN(crrelu_backward_autograd));
  m.impl("crrelu_at", TORCH_FN(crrelu_at_autograd));
  m.impl("crrelu_at_backward", TORCH_FN(crrelu_at_backward_autograd));
  m.impl("crrelu_glu", TORCH_FN(crrelu_glu_autograd));
  m.impl("crrelu_glu_backward", TORCH_FN(crrelu_glu_backward_autograd));
  m.impl("tabulated", TORCH_FN(tabulated_autograd));
  m.impl("tabulated_backward", TORCH_FN(tabulated_backward_autograd));
}

}  // namespace crrelu
