// A node of the autograd graph whose gradients are a function of what it saved: tensors and the
// channel dimension. The way through autograd, and through compiled autograd, which keeps the saved
// tensors itself and calls the function from the graph it makes.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace crrelu {

/// F has kName, kSaved (how many tensors) and gradients(grads, tensors, channel_dim, wanted): a
/// gradient for each tensor, given those for the outputs; undefined is zero. `wanted` says which
/// are asked for.
template <class F>
class FormulaNode : public torch::autograd::Node {
 public:
  template <class... Tensors>
  static void record(int64_t channel_dim, std::initializer_list<at::Tensor> outputs,
                     const Tensors&... tensors) {
    static_assert(sizeof...(Tensors) == F::kSaved);
    auto node = make();
    node->set_next_edges(torch::autograd::collect_next_edges(tensors...));
    node->saved_ = {torch::autograd::SavedVariable(tensors, false)...};
    node->channel_dim_ = channel_dim;
    for (const auto& output : outputs) torch::autograd::set_history(output, node);
  }

  std::string name() const override { return F::kName; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);  // other threads may go through the same graph
    for (auto& tensor : saved_) tensor.reset_data();
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    const auto tensors = [this] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return unpacked();
    }();
    return F::gradients(grads, tensors, channel_dim_, wanted());
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (const auto& tensor : saved_) args.collect(tensor, false);
    args.collect(channel_dim_);
  }

  torch::autograd::variable_list apply_with_saved(
      const torch::autograd::variable_list& grads,
      torch::dynamo::autograd::SwapSavedVariables& swap) override {
    namespace compiled = torch::dynamo::autograd;
    for (auto& tensor : saved_) swap.before(tensor);
    const auto tensors = unpacked();
    const auto mask = wanted();
    compiled::PackedArgs packed;
    packed.pack(torch::autograd::variable_list(tensors.begin(), tensors.end()));
    packed.pack(channel_dim_);
    packed.pack(std::vector<bool>(mask.begin(), mask.end()));
    const auto& arguments = packed.vec();
    const auto& python = compiled::getPyCompilerInterface();
    static std::once_flag bound;
    std::call_once(bound, [&] {
      std::vector<at::TypePtr> types;
      for (const auto& argument : arguments) types.push_back(argument.type());
      python->bind_function(swap.get_py_compiler(), name(), apply_packed, std::move(types));
    });
    auto result = python->call_function(
        swap.get_py_compiler(), "apply_functional", name(), grads, arguments,
        compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            compiled::get_input_metadata(next_edges())));
    for (auto& tensor : saved_) swap.after(tensor);
    return result;
  }

 private:
  using Saved = std::array<at::Tensor, F::kSaved>;
  using Wanted = std::array<bool, F::kSaved>;

  /// Nodes are held by shared_ptr before torch 2.13, by intrusive_ptr since.
  static auto make() {
    using Held = decltype(torch::autograd::Edge::function);
    if constexpr (std::is_same_v<Held, std::shared_ptr<torch::autograd::Node>>) {
      return std::shared_ptr<FormulaNode>(new FormulaNode(), [](auto* node) {
        deleteNode(node);  // torch's, which does not recurse along a long graph
      });
    } else {
      return c10::make_intrusive<FormulaNode>();
    }
  }

  Saved unpacked() const {
    Saved tensors;
    for (size_t i = 0; i < tensors.size(); ++i) tensors[i] = saved_[i].unpack();
    return tensors;
  }

  Wanted wanted() const {
    Wanted mask;
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = task_should_compute_output(i);
    return mask;
  }

  static torch::autograd::variable_list apply_packed(const torch::autograd::variable_list& grads,
                                                     const std::vector<c10::IValue>& arguments) {
    torch::dynamo::autograd::PackedArgs packed(arguments);
    const auto tensors = packed.unpack<torch::autograd::variable_list>();
    const auto channel_dim = packed.unpack<int64_t>();
    const auto mask = packed.unpack<std::vector<bool>>();
    Saved saved;
    Wanted wanted;
    std::copy(tensors.begin(), tensors.end(), saved.begin());
    std::copy(mask.begin(), mask.end(), wanted.begin());
    return F::gradients(grads, saved, channel_dim, wanted);
  }

  std::array<torch::autograd::SavedVariable, F::kSaved> saved_;
  int64_t channel_dim_ = 1;
};

}  // namespace crrelu
