// The operators' schemas, nothing else; each backend registers its kernels in its own file.
#include <torch/library.h>

#include <vector>

TORCH_LIBRARY(crrelu_ext, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("crrelu(Tensor input, Tensor epsilon, int channel_dim=1) -> Tensor", tags);
  m.def(
      "crrelu.out(Tensor input, Tensor epsilon, int channel_dim=1, *, Tensor(a!) out) -> "
      "Tensor(a!)",
      tags);
  // output_mask: which gradients are wanted; what is not wanted comes back undefined.
  m.def(
      "crrelu_backward(Tensor grad_output, Tensor input, Tensor epsilon, int channel_dim, bool[2] "
      "output_mask)"
      " -> (Tensor grad_input, Tensor grad_epsilon)",
      tags);
  // place: (2, C), location and scale of the bump for each epsilon; it has no derivative.
  m.def("crrelu_at(Tensor input, Tensor epsilon, Tensor place, int channel_dim=1) -> Tensor", tags);
  m.def(
      "crrelu_at_backward(Tensor grad_output, Tensor input, Tensor epsilon, Tensor place, int "
      "channel_dim, bool[2] output_mask)"
      " -> (Tensor grad_input, Tensor grad_epsilon)",
      tags);
  m.def("crrelu_glu(Tensor gate, Tensor up, Tensor epsilon, int channel_dim=1) -> Tensor", tags);
  m.def(
      "crrelu_glu_backward(Tensor grad_output, Tensor gate, Tensor up, Tensor epsilon, int "
      "channel_dim, bool[3] output_mask)"
      " -> (Tensor grad_gate, Tensor grad_up, Tensor grad_epsilon)",
      tags);
  m.def("tabulated(Tensor input, Tensor table) -> Tensor", tags);
  m.def("tabulated_backward(Tensor grad_output, Tensor input, Tensor table) -> Tensor", tags);
  // Adds what it counts of some `samples` elements, by channel, in bins around place[0], in units
  // of place[1].
  m.def("count_(Tensor input, Tensor place, int samples, int channel_dim, Tensor(a!) counts) -> ()",
        tags);
}
