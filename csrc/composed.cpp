#include "composed.h"

#include <torch/library.h>

#include <utility>

#include "checks.h"
#include "operators.h"

namespace crrelu {
namespace {

/// One element's quantities: epsilon in a shape that broadcasts, and so the scale if there is a
/// place; u, the input in units of the place, taken as 0 where exp(-u^2/2) vanishes (so that no inf
/// * 0 arises, also when these are differentiated; NaN stays), and that; 16-bit types in float32.
struct Terms {
  at::Tensor input, u, epsilon, scale, gaussian;
  c10::SmallVector<int64_t, 6> other_dims;  // the dimensions over which one epsilon is shared

  Terms(const at::Tensor& input_, const at::Tensor& epsilon_, int64_t channel_dim,
        const at::Tensor& place = {}) {
    const bool half = input_.scalar_type() == at::kBFloat16 || input_.scalar_type() == at::kHalf;
    const auto type = half ? at::kFloat : input_.scalar_type();
    input = input_.to(type);
    c10::SymDimVector shape;
    const bool shared = epsilon_.sym_numel() == 1;
    const int64_t channels_at = shared ? -1 : at::maybe_wrap_dim(channel_dim, input.dim());
    for (int64_t dim = 0; dim < input.dim(); ++dim) {
      if (dim != channels_at) other_dims.push_back(dim);
      if (!shared) shape.push_back(dim == channels_at ? epsilon_.sym_numel() : c10::SymInt(1));
    }
    // One epsilon becomes 0-dim: it must not add a dimension.
    epsilon = epsilon_.to(type).view_symint(shape);
    auto standardized = input;
    if (place.defined()) {
      scale = place.select(0, 1).to(type).view_symint(shape);
      standardized = (input - place.select(0, 0).to(type).view_symint(shape)) / scale;
    }
    const double far = type == at::kDouble ? 55.0 : 20.5;
    const auto vanished = standardized.abs() > far;
    u = standardized.masked_fill(vanished, 0);
    gaussian = at::exp(u * u * -0.5).masked_fill(vanished, 0);
  }

  at::Tensor value() const { return at::relu(input) + epsilon * bump(); }
  at::Tensor slope() const { return step() + epsilon * bump_slope(); }
  at::Tensor step() const { return (input > 0).to(input.scalar_type()); }
  at::Tensor bump() const { return (scale.defined() ? scale * u : u) * gaussian; }
  at::Tensor bump_slope() const { return (1 - u * u) * gaussian; }
  at::Tensor bump_curvature() const { return u * (u * u - 3) * gaussian; }
  /// Summed over what shares an epsilon.
  at::Tensor sum_to_epsilon(const at::Tensor& terms, const at::Tensor& epsilon_) const {
    return (other_dims.empty() ? terms : terms.sum(other_dims))
        .reshape_symint(epsilon_.sym_sizes())
        .to(epsilon_.scalar_type());
  }
};

}  // namespace

at::Tensor crrelu_composed(const at::Tensor& input, const at::Tensor& epsilon,
                           int64_t channel_dim) {
  check_arguments("crrelu", "input", input, epsilon, channel_dim);
  const Terms terms(input, epsilon, channel_dim);
  return terms.value().to(input.scalar_type());
}

at::Tensor crrelu_at_composed(const at::Tensor& input, const at::Tensor& epsilon,
                              const at::Tensor& place, int64_t channel_dim) {
  check_at_arguments("crrelu_at", input, epsilon, place, channel_dim);
  return Terms(input, epsilon, channel_dim, place).value().to(input.scalar_type());
}

namespace {

/// The gradients that are wanted, of the input and of epsilon.
std::tuple<at::Tensor, at::Tensor> gradients(const at::Tensor& grad_output, const at::Tensor& input,
                                             const at::Tensor& epsilon, const Terms& terms,
                                             const std::array<bool, 2>& wanted) {
  const auto grad = grad_output.to(terms.input.scalar_type());
  at::Tensor grad_input, grad_epsilon;
  if (wanted[0]) grad_input = (grad * terms.slope()).to(input.scalar_type());
  if (wanted[1]) grad_epsilon = terms.sum_to_epsilon(grad * terms.bump(), epsilon);
  return {grad_input, grad_epsilon};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> crrelu_at_backward_composed(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& epsilon,
    const at::Tensor& place, int64_t channel_dim, std::array<bool, 2> output_mask) {
  check_at_arguments("crrelu_at_backward", input, epsilon, place, channel_dim);
  check_alike("crrelu_at_backward", "grad_output", grad_output, "input", input);
  return gradients(grad_output, input, epsilon, Terms(input, epsilon, channel_dim, place),
                   output_mask);
}

std::tuple<at::Tensor, at::Tensor> crrelu_backward_composed(const at::Tensor& grad_output,
                                                            const at::Tensor& input,
                                                            const at::Tensor& epsilon,
                                                            int64_t channel_dim,
                                                            std::array<bool, 2> output_mask) {
  check_arguments("crrelu_backward", "input", input, epsilon, channel_dim);
  check_alike("crrelu_backward", "grad_output", grad_output, "input", input);
  return gradients(grad_output, input, epsilon, Terms(input, epsilon, channel_dim), output_mask);
}

std::array<at::Tensor, 3> crrelu_double_backward_composed(const at::Tensor& grad_grad_input,
                                                          const at::Tensor& grad_grad_epsilon,
                                                          const at::Tensor& grad_output,
                                                          const at::Tensor& input,
                                                          const at::Tensor& epsilon,
                                                          int64_t channel_dim) {
  const Terms terms(input, epsilon, channel_dim);
  const auto type = terms.input.scalar_type();
  const auto grad = grad_output.to(type);
  at::Tensor for_grad_output, for_input, for_epsilon;
  if (grad_grad_input.defined()) {
    const auto gg = grad_grad_input.to(type);
    for_grad_output = gg * terms.slope();
    for_input = gg * grad * terms.epsilon * terms.bump_curvature();
    for_epsilon = terms.sum_to_epsilon(gg * grad * terms.bump_slope(), epsilon);
  }
  if (grad_grad_epsilon.defined()) {
    const auto gg = grad_grad_epsilon.to(type).view_symint(terms.epsilon.sym_sizes());
    const auto more_for_grad_output = gg * terms.bump(),
               more_for_input = gg * grad * terms.bump_slope();
    for_grad_output =
        for_grad_output.defined() ? for_grad_output + more_for_grad_output : more_for_grad_output;
    for_input = for_input.defined() ? for_input + more_for_input : more_for_input;
  }
  if (for_grad_output.defined()) for_grad_output = for_grad_output.to(grad_output.scalar_type());
  if (for_input.defined()) for_input = for_input.to(input.scalar_type());
  return {for_grad_output, for_input, for_epsilon};
}

at::Tensor crrelu_glu_composed(const at::Tensor& gate, const at::Tensor& up,
                               const at::Tensor& epsilon, int64_t channel_dim) {
  check_glu_arguments("crrelu_glu", gate, up, epsilon, channel_dim);
  const Terms terms(gate, epsilon, channel_dim);
  return (terms.value() * up).to(gate.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> crrelu_glu_backward_composed(
    const at::Tensor& grad_output, const at::Tensor& gate, const at::Tensor& up,
    const at::Tensor& epsilon, int64_t channel_dim, std::array<bool, 3> output_mask) {
  check_glu_arguments("crrelu_glu_backward", gate, up, epsilon, channel_dim);
  check_alike("crrelu_glu_backward", "grad_output", grad_output, "gate", gate);
  const Terms terms(gate, epsilon, channel_dim);
  const auto grad = grad_output.to(terms.input.scalar_type());
  const auto grad_value = grad * up;
  at::Tensor grad_gate, grad_up, grad_epsilon;
  if (output_mask[0]) grad_gate = (grad_value * terms.slope()).to(gate.scalar_type());
  if (output_mask[1]) grad_up = (grad * terms.value()).to(up.scalar_type());
  if (output_mask[2]) grad_epsilon = terms.sum_to_epsilon(grad_value * terms.bump(), epsilon);
  return {grad_gate, grad_up, grad_epsilon};
}

namespace {

/// Of each element of a tabulated activation's input: where it lies, and the cubic there.
struct Lookup {
  at::Tensor beyond, u, value, first, second, third, per_unit;

  Lookup(const at::Tensor& input, const at::Tensor& table_) {
    const bool wide = input.scalar_type() == at::kDouble;
    const auto type = wide ? at::kDouble : at::kFloat;
    const auto x = input.to(type), table = table_.to(type);
    const auto intervals = table.sym_size(1) - 1;
    const auto knots = table.select(0, 0), lower = knots.select(0, 0), upper = knots.select(0, -1);
    const auto near = at::clamp(x, lower, upper);
    beyond = x - near;
    per_unit = c10::Scalar(intervals) / (upper - lower);
    const auto t = (near - lower) * per_unit;
    const auto index =
        at::nan_to_num(t.detach(), 0.0).floor().clamp(0, c10::Scalar(intervals - 1)).to(at::kLong);
    u = t - index;
    const auto pick = [&](int64_t row, int64_t next) {
      return table.select(0, row).index_select(0, (index + next).flatten()).view_as(index);
    };
    value = pick(1, 0);
    const auto rise = pick(1, 1) - value;
    first = pick(2, 0) / per_unit;
    const auto right = pick(2, 1) / per_unit;
    second = 3 * rise - 2 * first - right;
    third = first + right - 2 * rise;
  }
  at::Tensor slope() const { return (first + u * (2 * second + 3 * u * third)) * per_unit; }
  at::Tensor result() const {
    const auto slope = this->slope();
    const auto line = slope * beyond.masked_fill(slope == 0, 0);  // inf * 0 must not arise
    return value + u * (first + u * (second + u * third)) + line;
  }
};

}  // namespace

at::Tensor tabulated_composed(const at::Tensor& input, const at::Tensor& table) {
  check_table_arguments("tabulated", input, table);
  return Lookup(input, table).result().to(input.scalar_type());
}

at::Tensor tabulated_backward_composed(const at::Tensor& grad_output, const at::Tensor& input,
                                       const at::Tensor& table) {
  check_table_arguments("tabulated_backward", input, table);
  check_alike("tabulated_backward", "grad_output", grad_output, "input", input);
  return (grad_output * Lookup(input, table).slope()).to(input.scalar_type());
}

namespace {

at::Tensor tabulated_meta(const at::Tensor& input, const at::Tensor& table) {
  check_table_arguments("tabulated", input, table);
  return at::empty_like(input);
}

at::Tensor tabulated_backward_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                   const at::Tensor& table) {
  check_table_arguments("tabulated_backward", input, table);
  check_alike("tabulated_backward", "grad_output", grad_output, "input", input);
  return at::empty_like(input);
}

at::Tensor& crrelu_out_composed(const at::Tensor& input, const at::Tensor& epsilon,
                                int64_t channel_dim, at::Tensor& out) {
  check_arguments("crrelu", "input", input, epsilon, channel_dim);
  prepare_out(input, epsilon, out);
  return out.copy_(crrelu_op().call(input, epsilon, channel_dim));
}

at::Tensor crrelu_meta(const at::Tensor& input, const at::Tensor& epsilon, int64_t channel_dim) {
  check_arguments("crrelu", "input", input, epsilon, channel_dim);
  return at::empty_like(input);
}

std::tuple<at::Tensor, at::Tensor> crrelu_backward_meta(const at::Tensor& grad_output,
                                                        const at::Tensor& input,
                                                        const at::Tensor& epsilon,
                                                        int64_t channel_dim,
                                                        std::array<bool, 2> output_mask) {
  check_arguments("crrelu_backward", "input", input, epsilon, channel_dim);
  check_alike("crrelu_backward", "grad_output", grad_output, "input", input);
  return {output_mask[0] ? at::empty_like(input) : at::Tensor(),
          output_mask[1] ? at::empty_like(epsilon, at::MemoryFormat::Contiguous) : at::Tensor()};
}

at::Tensor crrelu_at_meta(const at::Tensor& input, const at::Tensor& epsilon,
                          const at::Tensor& place, int64_t channel_dim) {
  check_at_arguments("crrelu_at", input, epsilon, place, channel_dim);
  return at::empty_like(input);
}

std::tuple<at::Tensor, at::Tensor> crrelu_at_backward_meta(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& epsilon,
    const at::Tensor& place, int64_t channel_dim, std::array<bool, 2> output_mask) {
  check_at_arguments("crrelu_at_backward", input, epsilon, place, channel_dim);
  check_alike("crrelu_at_backward", "grad_output", grad_output, "input", input);
  return {output_mask[0] ? at::empty_like(input) : at::Tensor(),
          output_mask[1] ? at::empty_like(epsilon, at::MemoryFormat::Contiguous) : at::Tensor()};
}

at::Tensor crrelu_glu_meta(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& epsilon,
                           int64_t channel_dim) {
  check_glu_arguments("crrelu_glu", gate, up, epsilon, channel_dim);
  return at::empty_like(gate);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> crrelu_glu_backward_meta(
    const at::Tensor& grad_output, const at::Tensor& gate, const at::Tensor& up,
    const at::Tensor& epsilon, int64_t channel_dim, std::array<bool, 3> output_mask) {
  check_glu_arguments("crrelu_glu_backward", gate, up, epsilon, channel_dim);
  check_alike("crrelu_glu_backward", "grad_output", grad_output, "gate", gate);
  return {output_mask[0] ? at::empty_like(gate) : at::Tensor(),
          output_mask[1] ? at::empty_like(gate) : at::Tensor(),
          output_mask[2] ? at::empty_like(epsilon, at::MemoryFormat::Contiguous) : at::Tensor()};
}

void warn_of_missing_kernels() {
  TORCH_WARN_ONCE(
      "crrelu_ext was built without CUDA kernels: on a GPU it takes the formula composed of "
      "PyTorch's operators, which is several times slower. To get the kernels, install it again "
      "from its source folder, where a CUDA build of torch and nvcc of the same CUDA version are: "
      "FORCE_CUDA=1 pip install --force-reinstall --no-deps --no-cache-dir .  (it says what is "
      "missing)");
}

/// One of the above, in the place of a kernel that this build does not have.
template <auto composed>
struct InPlaceOfKernel;

template <class Result, class... Arguments, Result (*composed)(const at::Tensor&, Arguments...)>
struct InPlaceOfKernel<composed> {
  static Result call(const at::Tensor& tensor, Arguments... arguments) {
    if (tensor.is_cuda()) warn_of_missing_kernels();
    return composed(tensor, std::forward<Arguments>(arguments)...);
  }
};

}  // namespace

// Any device without kernels of ours.
TORCH_LIBRARY_IMPL(crrelu_ext, CompositeExplicitAutograd, m) {
  m.impl("crrelu", InPlaceOfKernel<crrelu_composed>::call);
  m.impl("crrelu.out", InPlaceOfKernel<crrelu_out_composed>::call);
  m.impl("crrelu_backward", InPlaceOfKernel<crrelu_backward_composed>::call);
  m.impl("crrelu_at", InPlaceOfKernel<crrelu_at_composed>::call);
  m.impl("crrelu_at_backward", InPlaceOfKernel<crrelu_at_backward_composed>::call);
  m.impl("crrelu_glu", InPlaceOfKernel<crrelu_glu_composed>::call);
  m.impl("crrelu_glu_backward", InPlaceOfKernel<crrelu_glu_backward_composed>::call);
  m.impl("tabulated", InPlaceOfKernel<tabulated_composed>::call);
  m.impl("tabulated_backward", InPlaceOfKernel<tabulated_backward_composed>::call);
}

TORCH_LIBRARY_IMPL(crrelu_ext, Meta, m) {
  m.impl("crrelu", crrelu_meta);
  m.impl("crrelu_backward", crrelu_backward_meta);
  m.impl("crrelu_at", crrelu_at_meta);
  m.impl("crrelu_at_backward", crrelu_at_backward_meta);
  m.impl("crrelu_glu", crrelu_glu_meta);
  m.impl("crrelu_glu_backward", crrelu_glu_backward_meta);
  m.impl("tabulated", tabulated_meta);
  m.impl("tabulated_backward", tabulated_backward_meta);
}

// torch.func.vmap.
TORCH_LIBRARY_IMPL(crrelu_ext, FuncTorchBatched, m) {
  m.impl("crrelu", crrelu_composed);
  m.impl("crrelu_backward", crrelu_backward_composed);
  m.impl("crrelu_at", crrelu_at_composed);
  m.impl("crrelu_at_backward", crrelu_at_backward_composed);
  m.impl("crrelu_glu", crrelu_glu_composed);
  m.impl("crrelu_glu_backward", crrelu_glu_backward_composed);
  m.impl("tabulated", tabulated_composed);
  m.impl("tabulated_backward", tabulated_backward_composed);
}

}  // namespace crrelu
