// Derivatives: hand-written graph nodes, which are the quickest route through autograd and the only
// one that also serves torch.func, forward-mode AD and double backward. First derivatives take the
// kernels; where a transform is at work, and for second derivatives, the composed formula
// differentiates itself.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <type_traits>

#include "composed.h"
#include "operators.h"

namespace crrelu {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

/// Nodes are held by shared_ptr before torch 2.13, by intrusive_ptr since.
template <class T>
auto make_node() {
  if constexpr (std::is_same_v<decltype(torch::autograd::Edge::function), std::shared_ptr<Node>>) {
    return std::shared_ptr<T>(
        new T(), [](auto* node) { deleteNode(node); });  // torch's, which does not recurse
  } else {
    return c10::make_intrusive<T>();
  }
}

bool has_forward_grad(const Tensor& tensor) { return torch::autograd::isFwGradDefined(tensor); }

/// What both nodes save of the call: the input, epsilon, and where it lies.
struct SavedCall : Node {
  SavedVariable input, epsilon;
  int64_t channel_dim = 1;

  void release_variables() override {
    input.reset_data();
    epsilon.reset_data();
  }
};

/// grad_input, grad_epsilon = backward(grad_output, input, epsilon), as an operator with a
/// derivative of its own.
struct CrreluBackward : SavedCall {
  std::string name() const override { return "CrreluBackward"; }

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {Tensor(), Tensor()};
    auto [grad_input, grad_epsilon] =
        crrelu_backward_op().call(grads[0], input.unpack(), epsilon.unpack(), channel_dim,
                                  {task_should_compute_output(0), task_should_compute_output(1)});
    return {std::move(grad_input), std::move(grad_epsilon)};
  }
};

struct CrreluBackwardBackward : SavedCall {
  SavedVariable grad_output;
  std::string name() const override { return "CrreluBackwardBackward"; }

  void release_variables() override {
    SavedCall::release_variables();
    grad_output.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    auto result = crrelu_double_backward_composed(grads[0], grads[1], grad_output.unpack(),
                                                  input.unpack(), epsilon.unpack(), channel_dim);
    return {std::move(result[0]), std::move(result[1]), std::move(result[2])};
  }
};

Tensor crrelu_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& epsilon,
                       int64_t channel_dim) {
  if (has_forward_grad(input) || has_forward_grad(epsilon))
    return crrelu_composed(input, epsilon, channel_dim);
  if (!torch::autograd::compute_requires_grad(input, epsilon)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return crrelu_op().redispatch(keys & c10::after_autograd_keyset, input, epsilon, channel_dim);
  }
  auto node = make_node<CrreluBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(input, epsilon));
  node->input = SavedVariable(input, false);
  node->epsilon = SavedVariable(epsilon, false);
  node->channel_dim = channel_dim;
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    output = crrelu_op().redispatch(keys & c10::after_autograd_keyset, input, epsilon, channel_dim);
  }
  torch::autograd::set_history(output, node);
  return output;
}

std::tuple<Tensor, Tensor> crrelu_backward_autograd(c10::DispatchKeySet keys,
                                                    const Tensor& grad_output, const Tensor& input,
                                                    const Tensor& epsilon, int64_t channel_dim,
                                                    std::array<bool, 2> output_mask) {
  if (has_forward_grad(grad_output) || has_forward_grad(input) || has_forward_grad(epsilon)) {
    return crrelu_backward_composed(grad_output, input, epsilon, channel_dim, output_mask);
  }
  const bool recorded = torch::autograd::compute_requires_grad(grad_output, input, epsilon);
  std::tuple<Tensor, Tensor> grads;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    grads = crrelu_backward_op().redispatch(keys & c10::after_autograd_keyset, grad_output, input,
                                            epsilon, channel_dim, output_mask);
  }
  if (recorded) {
    auto node = make_node<CrreluBackwardBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(grad_output, input, epsilon));
    node->grad_output = SavedVariable(grad_output, false);
    node->input = SavedVariable(input, false);
    node->epsilon = SavedVariable(epsilon, false);
    node->channel_dim = channel_dim;
    torch::autograd::set_history(std::get<0>(grads), node);
    torch::autograd::set_history(std::get<1>(grads), node);
  }
  return grads;
}

/// Writing into a tensor is for use without gradients, as out= is in torch.
void check_no_gradient(const char* name, const Tensor& tensor) {
  TORCH_CHECK(!torch::autograd::compute_requires_grad(tensor) && !has_forward_grad(tensor),
              "crrelu: ", name,
              " requires grad, but out= and in-place forms have no derivative; use crrelu(input, "
              "epsilon), or this under"
              " torch.no_grad()");
}

Tensor& crrelu_out_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& epsilon,
                            int64_t channel_dim, Tensor& out) {
  check_no_gradient("input", input);
  check_no_gradient("epsilon", epsilon);
  check_no_gradient("out", out);
  at::AutoDispatchBelowADInplaceOrView guard;
  crrelu_out_op().redispatch(keys & c10::after_autograd_keyset, input, epsilon, channel_dim, out);
  torch::autograd::impl::bump_version(out);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(crrelu_ext, Autograd, m) {
  m.impl("crrelu", TORCH_FN(crrelu_autograd));
  m.impl("crrelu.out", TORCH_FN(crrelu_out_autograd));
  m.impl("crrelu_backward", TORCH_FN(crrelu_backward_autograd));
}

}  // namespace crrelu
