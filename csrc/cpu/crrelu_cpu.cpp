// The operators on the CPU: tensors in, work split over threads, raw pointers to the kernels.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <ATen/TensorIterator.h>
#include <torch/library.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>

#include "../checks.h"
#include "../dense.h"
#include "../tabulated.h"
#include "dispatch.h"

namespace crrelu {
namespace {

/// Elements to a piece of work, and to a partial sum: by the tensor's shape alone, so that sums
/// have the same bits for any number of threads. A multiple of the kernels' vectors and of a cache
/// line.
constexpr int64_t kChunk = 16384;
/// Shorter stretches of one epsilon than this are handled as rows, with the epsilons written out.
constexpr int64_t kShortestRun = 128;
/// A row is made at least this long by repeating the pattern of epsilons.
constexpr int64_t kShortestRow = 512;
/// Partial sums of a column, at the most.
constexpr int64_t kMostBands = 64;
/// Outputs from this size on are written past the caches, which could not keep them.
constexpr int64_t kStreamBytes = int64_t{32} << 20;
/// New outputs from this size on come from fresh pages, which cost more than the arithmetic unless
/// they are huge.
constexpr int64_t kHugePageBytes = int64_t{8} << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

const Kernels& kernels_for(Activation activation, at::ScalarType type) {
  return instruction_set().kernels(activation)[static_cast<int>(storage_of(type))];
}

/// A new tensor of the same shape and, where the input has no gaps, the same strides.
at::Tensor empty_output(const at::Tensor& like) {
  auto output =
      like.is_non_overlapping_and_dense()
          ? at::detail::empty_strided_cpu(like.sizes(), like.strides(), like.scalar_type())
          : at::empty_like(like);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const int64_t bytes = output.nbytes();
  if (bytes >= kHugePageBytes) {
    constexpr uintptr_t kPage = 4096;
    const auto begin = (reinterpret_cast<uintptr_t>(output.data_ptr()) + kPage - 1) & ~(kPage - 1);
    const auto end = (reinterpret_cast<uintptr_t>(output.data_ptr()) + bytes) & ~(kPage - 1);
    madvise(reinterpret_cast<void*>(begin), end - begin,
            MADV_HUGEPAGE);  // advice: failure costs nothing but time
  }
#endif
  return output;
}

/// epsilon in the kernels' arithmetic type, contiguous. Its NaN is made the common one: the
/// kernels' rounding to bfloat16 counts on NaNs whose low bits are zero.
at::Tensor epsilon_for(const at::Tensor& epsilon, at::ScalarType input_type) {
  const auto type = input_type == at::kDouble ? at::kDouble : at::kFloat;
  auto converted = epsilon.scalar_type() == type && epsilon.is_contiguous()
                       ? epsilon
                       : epsilon.to(type).contiguous();
  if (input_type != at::kBFloat16) return converted;
  const float* values = converted.const_data_ptr<float>();
  const bool plain =
      std::none_of(values, values + converted.numel(), [](float v) { return std::isnan(v); });
  return plain ? converted : at::nan_to_num(converted, NAN, INFINITY, -INFINITY);
}

/// f(begin, end) over pieces of [0, count), on PyTorch's threads. at::parallel_for is compiled into
/// its caller and would bring an OpenMP runtime of this compiler's; for_each calls it inside
/// libtorch, whatever built that.
template <class F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  if (count <= grain) return f(0, count);
  const auto pieces = at::detail::empty_strided_cpu(
      {count}, {1}, at::kByte);  // addresses to count by, never touched
  const char* first = static_cast<const char*>(pieces.const_data_ptr());
  at::TensorIterator::borrowing_nullary_op(pieces).for_each(
      [&](char** data, const int64_t*, int64_t size, int64_t) {
        f(data[0] - first, data[0] - first + size);
      },
      grain);
}

/// How a tensor is cut. Runs: stretches of one epsilon, each cut into equal pieces. Rows: a matrix
/// whose columns have each their epsilon, cut into bands of rows and tiles of columns, and what is
/// left over of a last row.
struct Plan {
  bool rows;
  int64_t runs, inner, pieces;                            // runs
  int64_t columns, repeats, full_rows, band, tile, rest;  // rows

  explicit Plan(const Layout& layout) {
    inner = layout.inner;
    rows = layout.channels > 1 && layout.inner < kShortestRun;
    runs = layout.outer * layout.channels;
    pieces = std::max<int64_t>(1, ceil_div(inner, kChunk));
    const int64_t period = layout.channels * layout.inner, numel = layout.outer * period;
    repeats =
        std::max<int64_t>(1, std::min(layout.outer, kShortestRow / std::max<int64_t>(1, period)));
    columns = period * repeats;
    full_rows = columns ? numel / columns : 0;
    rest = numel - full_rows * columns;
    tile = std::min(columns, kChunk);
    band =
        std::max(ceil_div(kChunk, std::max<int64_t>(1, columns)), ceil_div(full_rows, kMostBands));
    band = ceil_div(band, 4) * 4;
  }

  int64_t bands() const { return ceil_div(full_rows, band); }
  int64_t tiles() const { return ceil_div(columns, tile); }
};

/// Pieces of work to give to a thread at a time, each of `numel` elements.
int64_t grain(int64_t numel) { return std::max<int64_t>(1, kChunk / std::max<int64_t>(1, numel)); }

/// The epsilons of one row.
at::Tensor row_of_epsilons(const at::Tensor& epsilon, const Plan& plan) {
  return epsilon.repeat_interleave(plan.inner).repeat({plan.repeats});
}

/// The inputs that an activation may have, at the most.
constexpr int kInputs = 2;

/// Where the elements of the inputs, or of their gradients, lie; null for a tensor that is absent.
template <class Void>
struct Addresses {
  std::array<Void*, kInputs> first{};

  /// Those of the elements that lie so many bytes behind the first ones.
  std::array<Void*, kInputs> at(int64_t bytes) const {
    using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
    auto addresses = first;
    for (auto& address : addresses) {
      if (address) address = static_cast<Byte*>(address) + bytes;
    }
    return addresses;
  }
};

Addresses<const void> addresses_of(at::TensorList tensors) {
  Addresses<const void> addresses;
  for (size_t i = 0; i < tensors.size(); ++i) addresses.first[i] = tensors[i].const_data_ptr();
  return addresses;
}

/// What an activation has beside its inputs, in the kernels' arithmetic type: epsilons, or a table.
struct Parameter {
  at::Tensor values;
  Layout layout;

  static Parameter epsilon(const at::Tensor& epsilon, const at::Tensor& input,
                           int64_t channel_dim) {
    return {epsilon_for(epsilon, input.scalar_type()), layout_of(input, epsilon, channel_dim)};
  }
};

/// f of `inputs`, which have no gaps and lie alike, into `output`, which does so too.
void forward(Activation activation, at::TensorList inputs, const Parameter& parameter,
             const at::Tensor& output) {
  const auto& input = inputs[0];
  const int64_t numel = input.numel();
  if (numel == 0) return;
  const auto& kernels = kernels_for(activation, input.scalar_type());
  const Plan plan(parameter.layout);
  const auto epsilon = plan.rows ? row_of_epsilons(parameter.values, plan) : parameter.values;
  const int64_t size = input.element_size(), step = epsilon.element_size();
  const auto x = addresses_of(inputs);
  const auto* e = static_cast<const char*>(epsilon.const_data_ptr());
  auto* y = static_cast<char*>(output.mutable_data_ptr());
  const bool stream = x.first[0] != y && numel * size >= kStreamBytes;

  if (plan.rows) {
    parallel_for(plan.bands() * plan.tiles(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / plan.tiles() * plan.band, column = i % plan.tiles() * plan.tile;
        const int64_t at = (row * plan.columns + column) * size;
        kernels.forward_rows(x.at(at).data(), e + column * step, y + at,
                             std::min(plan.band, plan.full_rows - row),
                             std::min(plan.tile, plan.columns - column), plan.columns);
      }
    });
    const int64_t at = (numel - plan.rest) * size;
    // Nothing, if rest is 0.
    kernels.forward_rows(x.at(at).data(), e, y + at, 1, plan.rest, plan.rest);
    return;
  }
  const int64_t channels = parameter.layout.channels;
  parallel_for(plan.runs * plan.pieces, grain(plan.inner), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t run = i / plan.pieces, start = i % plan.pieces * kChunk;
      const int64_t at = (run * plan.inner + start) * size;
      kernels.forward(x.at(at).data(), e + run % channels * step, y + at,
                      std::min(kChunk, plan.inner - start), stream);
    }
  });
}

/// On the stack for a small tensor.
using Sums = c10::SmallVector<double, 16>;

/// For each channel the slots that its sum is made of: (outer, channels, inner).
struct Slots {
  Sums sums;
  int64_t inner = 0;
};

struct Grads {
  std::array<at::Tensor, kInputs> inputs;
  Slots epsilon;
};

/// The gradient of epsilon: its slots added up, in a fixed order.
at::Tensor fold(const Slots& slots, const at::Tensor& epsilon) {
  const int64_t channels = epsilon.numel();
  Sums totals(channels, 0);
  for (const double* slot = slots.sums.begin(); slot < slots.sums.end();) {
    for (double& total : totals) {
      for (int64_t k = 0; k < slots.inner; ++k) total += *slot++;
    }
  }
  auto folded = at::detail::empty_cpu({channels}, epsilon.scalar_type());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, epsilon.scalar_type(), "fold", [&] {
    std::copy(totals.begin(), totals.end(), folded.mutable_data_ptr<scalar_t>());
  });
  return folded;
}

/// The gradients wanted: those of the inputs, then the slots of epsilon's. `inputs` have no gaps
/// and lie alike, and so does `grad_output`.
Grads backward(Activation activation, const at::Tensor& grad_output, at::TensorList inputs,
               const Parameter& parameter, at::ArrayRef<bool> wanted) {
  const auto& input = inputs[0];
  const int64_t numel = input.numel();
  const bool want_epsilon = wanted.back();
  Grads grads;
  Sums& sums = grads.epsilon.sums;
  Addresses<void> gx;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!wanted[i]) continue;
    grads.inputs[i] = empty_output(input);
    gx.first[i] = grads.inputs[i].mutable_data_ptr();
  }
  if (numel == 0) return grads;
  if (std::none_of(wanted.begin(), wanted.end(), [](bool want) { return want; })) return grads;
  const auto& kernels = kernels_for(activation, input.scalar_type());
  const Plan plan(parameter.layout);
  const auto epsilon = plan.rows ? row_of_epsilons(parameter.values, plan) : parameter.values;
  const int64_t size = input.element_size(), step = epsilon.element_size();
  const auto* g = static_cast<const char*>(grad_output.const_data_ptr());
  const auto x = addresses_of(inputs);
  const auto* e = static_cast<const char*>(epsilon.const_data_ptr());
  const bool stream = numel * size >= kStreamBytes;

  if (plan.rows) {
    grads.epsilon.inner = plan.inner;  // a band's columns: (repeats, channels, inner)
    if (want_epsilon) sums.resize((plan.bands() + (plan.rest > 0)) * plan.columns);
    parallel_for(plan.bands() * plan.tiles(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t band = i / plan.tiles(), row = band * plan.band,
                      column = i % plan.tiles() * plan.tile;
        const int64_t at = (row * plan.columns + column) * size;
        kernels.backward_rows(g + at, x.at(at).data(), e + column * step, gx.at(at).data(),
                              want_epsilon ? sums.data() + band * plan.columns + column : nullptr,
                              std::min(plan.band, plan.full_rows - row),
                              std::min(plan.tile, plan.columns - column), plan.columns);
      }
    });
    if (plan.rest > 0) {
      const int64_t at = (numel - plan.rest) * size;
      kernels.backward_rows(g + at, x.at(at).data(), e, gx.at(at).data(),
                            want_epsilon ? sums.data() + plan.bands() * plan.columns : nullptr, 1,
                            plan.rest, plan.rest);
    }
    return grads;
  }
  // A slot for each piece of each run.
  const int64_t channels = parameter.layout.channels, slots = plan.runs * plan.pieces;
  grads.epsilon.inner = plan.pieces;
  if (want_epsilon) sums.resize(slots);
  parallel_for(slots, grain(plan.inner), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t run = i / plan.pieces, start = i % plan.pieces * kChunk;
      const int64_t at = (run * plan.inner + start) * size;
      kernels.backward(g + at, x.at(at).data(), e + run % channels * step, gx.at(at).data(),
                       want_epsilon ? &sums[i] : nullptr, std::min(kChunk, plan.inner - start),
                       stream);
    }
  });
  return grads;
}

at::Tensor crrelu_cpu(const at::Tensor& input, const at::Tensor& epsilon, int64_t channel_dim) {
  check_arguments(input, epsilon, channel_dim);
  auto output = empty_output(input);
  const auto dense = without_gaps(input);
  forward(Activation::kPlain, {dense}, Parameter::epsilon(epsilon, dense, channel_dim), output);
  return output;
}

at::Tensor& crrelu_out_cpu(const at::Tensor& input, const at::Tensor& epsilon, int64_t channel_dim,
                           at::Tensor& out) {
  check_arguments(input, epsilon, channel_dim);
  prepare_out(input, epsilon, out);
  if (out.scalar_type() == input.scalar_type() && out.strides() == input.strides() &&
      input.is_non_overlapping_and_dense()) {
    forward(Activation::kPlain, {input}, Parameter::epsilon(epsilon, input, channel_dim), out);
  } else {
    out.copy_(crrelu_cpu(input, epsilon, channel_dim));
  }
  return out;
}

std::tuple<at::Tensor, at::Tensor> crrelu_backward_cpu(const at::Tensor& grad_output,
                                                       const at::Tensor& input,
                                                       const at::Tensor& epsilon,
                                                       int64_t channel_dim,
                                                       std::array<bool, 2> output_mask) {
  check_arguments(input, epsilon, channel_dim);
  check_grad_output(grad_output, input);
  const auto dense = without_gaps(input);
  auto grads = backward(Activation::kPlain, laid_out_as(grad_output, dense), {dense},
                        Parameter::epsilon(epsilon, dense, channel_dim), output_mask);
  return {std::move(grads.inputs[0]), output_mask[1] ? fold(grads.epsilon, epsilon) : at::Tensor()};
}

at::Tensor crrelu_glu_cpu(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& epsilon,
                          int64_t channel_dim) {
  check_glu_arguments(gate, up, epsilon, channel_dim);
  const auto dense = without_gaps(gate);
  auto output = empty_output(dense);
  forward(Activation::kGated, {dense, laid_out_as(up, dense)},
          Parameter::epsilon(epsilon, dense, channel_dim), output);
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> crrelu_glu_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& gate, const at::Tensor& up,
    const at::Tensor& epsilon, int64_t channel_dim, std::array<bool, 3> output_mask) {
  check_glu_arguments(gate, up, epsilon, channel_dim);
  check_alike("crrelu_glu_backward", "grad_output", grad_output, "gate", gate);
  const auto dense = without_gaps(gate);
  auto grads =
      backward(Activation::kGated, laid_out_as(grad_output, dense), {dense, laid_out_as(up, dense)},
               Parameter::epsilon(epsilon, dense, channel_dim), output_mask);
  return {std::move(grads.inputs[0]), std::move(grads.inputs[1]),
          output_mask[2] ? fold(grads.epsilon, epsilon) : at::Tensor()};
}

/// A table as the kernels take it (TableOf), for an input of this type.
Parameter table_for(const at::Tensor& table_, const at::Tensor& input) {
  const auto table = table_.to(at::kDouble).contiguous();
  const int64_t intervals = table.size(1) - 1;
  const double *x = table.const_data_ptr<double>(), *y = x + intervals + 1, *m = y + intervals + 1;
  const double width = (x[intervals] - x[0]) / static_cast<double>(intervals);
  const auto type = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor values = at::detail::empty_cpu({kTableHeader + 4 * intervals}, type);
  AT_DISPATCH_FLOATING_TYPES(type, "table_for", [&] {
    auto* value = values.mutable_data_ptr<scalar_t>();
    value[kLower] = x[0];
    value[kUpper] = x[intervals];
    value[kPerUnit] = 1 / width;
    value[kIntervals] = intervals;
    for (int64_t k = 0; k < intervals; ++k) {
      set_coefficients(value + kTableHeader + 4 * k, y[k], y[k + 1], m[k] * width,
                       m[k + 1] * width);
    }
  });
  return {values, {1, 1, input.numel()}};
}

at::Tensor tabulated_cpu(const at::Tensor& input, const at::Tensor& table) {
  check_table_arguments("tabulated", input, table);
  const auto dense = without_gaps(input);
  auto output = empty_output(dense);
  forward(Activation::kTabulated, {dense}, table_for(table, dense), output);
  return output;
}

at::Tensor tabulated_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                  const at::Tensor& table) {
  check_table_arguments("tabulated_backward", input, table);
  check_alike("tabulated_backward", "grad_output", grad_output, "input", input);
  const auto dense = without_gaps(input);
  auto grads = backward(Activation::kTabulated, laid_out_as(grad_output, dense), {dense},
                        table_for(table, dense), {true, false});
  return std::move(grads.inputs[0]);
}

}  // namespace

TORCH_LIBRARY_IMPL(crrelu_ext, CPU, m) {
  m.impl("crrelu", crrelu_cpu);
  m.impl("crrelu.out", crrelu_out_cpu);
  m.impl("crrelu_backward", crrelu_backward_cpu);
  m.impl("crrelu_glu", crrelu_glu_cpu);
  m.impl("crrelu_glu_backward", crrelu_glu_backward_cpu);
  m.impl("tabulated", tabulated_cpu);
  m.impl("tabulated_backward", tabulated_backward_cpu);
}

}  // namespace crrelu
