// Nested tensors of the strided layout have no kernels here: whatever is called is refused. Those
// of the jagged layout are a class in Python, which hands on their values (crrelu_ext/_nested.py).
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <string>

namespace crrelu {
namespace {

/// In the place of any operator's kernel: throws an error that names the first nested argument.
void refuse_nested(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const std::string name = op.schema().name().substr(std::string("crrelu_ext::").size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& given = torch::jit::peek(*stack, i, arguments.size());
    TORCH_CHECK_VALUE(!given.isTensor() || !given.toTensor().is_nested(), name, ": ",
                      arguments[i].name(),
                      " is a nested tensor of layout torch.strided; allowed are dense tensors, and "
                      "as input, gate or up (without out) nested ones of layout torch.jagged");
  }
}

void refuse_all(torch::Library& m) {
  for (const char* op :
       {"crrelu", "crrelu.out", "crrelu_backward", "crrelu_at", "crrelu_at_backward", "crrelu_glu",
        "crrelu_glu_backward", "tabulated", "tabulated_backward", "count_"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse_nested>());
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(crrelu_ext, NestedTensorCPU, m) { refuse_all(m); }
TORCH_LIBRARY_IMPL(crrelu_ext, NestedTensorCUDA, m) { refuse_all(m); }

}  // namespace crrelu
