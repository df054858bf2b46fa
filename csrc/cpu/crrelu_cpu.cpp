// The operators on the CPU: tensors in, work split over threads, raw pointers to the kernels.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <torch/library.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../native.h"
#include "../tabulated.h"
#include "dispatch.h"
#include "parallel.h"

namespace crrelu {
namespace {

/// Elements to a piece of work, and to a partial sum: by shape and layout alone, so that sums
/// have the same bits for any number of threads. A multiple of the kernels' vectors and of a cache
/// line.
constexpr int64_t kChunk = 16384;
/// Shorter stretches of one epsilon than this are handled as rows, with the epsilons written out.
constexpr int64_t kShortestRun = 128;
/// But where so few stretches are of one channel, and no shorter (a 16-bit type's vectors side by
/// side): then there is nearly an epsilon, and a sum, to write out for each element.
constexpr int64_t kFewRuns = 2, kShortestOfFew = 64;
/// A row is made at least this long by repeating the pattern of epsilons.
constexpr int64_t kShortestRow = kTileColumns;
/// Partial sums of a column, at the most.
constexpr int64_t kMostBands = 64;
/// As many of them, 8 MiB, does a thread keep for its next call.
constexpr size_t kMostKeptSums = size_t{1} << 20;
/// Outputs from this size on are written past the caches, which could not keep them.
constexpr int64_t kStreamBytes = int64_t{32} << 20;
/// Where they are in longer runs than this: each one waits for what it has written.
constexpr int64_t kStreamedRunBytes = int64_t{8} << 10;
/// New outputs from this size on come from fresh pages, which cost more than the arithmetic unless
/// they are huge.
constexpr int64_t kHugePageBytes = int64_t{8} << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

const Kernels& kernels_for(Activation activation, at::ScalarType type) {
  return instruction_set().kernels(activation)[static_cast<int>(storage_of(type))];
}

/// The backend that native.h asks for.
struct Cpu {
  struct Guard {
    explicit Guard(at::Device) {}
  };
  static bool takes_rows(const at::Tensor&, int64_t length) { return length >= kShortestRun; }
  static at::Tensor empty_output(const at::Tensor& like);
  static Parameter parameter(const Epsilons& given, const at::Tensor& dense);
  static Parameter parameter(const Table& given, const at::Tensor& dense);
  static void forward(Activation activation, at::TensorList inputs, const Parameter& parameter,
                      const at::Tensor& output);
  template <size_t kWanted>
  static std::array<at::Tensor, kWanted> backward(Activation activation,
                                                  const at::Tensor& grad_output,
                                                  at::TensorList inputs, const Parameter& parameter,
                                                  const std::array<bool, kWanted>& wanted);
};

at::Tensor Cpu::empty_output(const at::Tensor& like) {
  auto output =
      like.is_non_overlapping_and_dense()
          ? at::detail::empty_strided_cpu(like.sizes(), like.strides(), like.scalar_type())
          : at::detail::empty_cpu(like.sizes(), like.scalar_type());
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

/// Gives epsilon's gradient its memory by malloc, which finds a small block where it was in the
/// last call. PyTorch's own asks for alignment, for which glibc takes new memory in every call: see
/// Cpu::backward.
struct SmallAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = std::malloc(std::max<size_t>(1, bytes));
    TORCH_CHECK(data, "crrelu: there is no memory for ", bytes, " bytes");
    return {data, data, raw_deleter(), at::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

at::Tensor empty_small(int64_t numel, at::ScalarType type) {
  static SmallAllocator allocator;
  return at::detail::empty_generic({numel}, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   type, std::nullopt);
}

/// Numbers in the kernels' arithmetic type, contiguous. NaN is made the common one: the kernels'
/// rounding to bfloat16 counts on NaNs whose low bits are zero.
at::Tensor numbers_for(const at::Tensor& numbers, const at::Tensor& input) {
  const auto type = arithmetic_of(input);
  auto converted = numbers.scalar_type() == type && numbers.is_contiguous()
                       ? numbers
                       : numbers.to(type).contiguous();
  if (input.scalar_type() != at::kBFloat16) return converted;
  const float* values = converted.const_data_ptr<float>();
  const bool plain =
      std::none_of(values, values + converted.numel(), [](float v) { return std::isnan(v); });
  return plain ? converted : at::nan_to_num(converted, NAN, INFINITY, -INFINITY);
}

Parameter Cpu::parameter(const Epsilons& given, const at::Tensor& dense) {
  Parameter parameter{
      {numbers_for(given.epsilon, dense)}, given.layout(dense), given.epsilon.scalar_type()};
  if (given.place.defined()) {
    for (int k : {0, 1}) parameter.numbers[1 + k] = numbers_for(given.place.select(0, k), dense);
  }
  return parameter;
}

/// The table as TableOf takes it.
Parameter Cpu::parameter(const Table& given, const at::Tensor& dense) {
  const auto table = given.table.to(at::kDouble).contiguous();
  const int64_t intervals = table.size(1) - 1;
  const double *x = table.const_data_ptr<double>(), *y = x + intervals + 1, *m = y + intervals + 1;
  const double width = (x[intervals] - x[0]) / static_cast<double>(intervals);
  const auto type = arithmetic_of(dense);
  const at::Tensor values = at::detail::empty_cpu({kTableHeader + 4 * intervals}, type);
  AT_DISPATCH_FLOATING_TYPES(type, "table", [&] {
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
  return {{values}, given.layout(dense), type};
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
    const bool few = layout.outer <= kFewRuns && inner >= kShortestOfFew;
    rows = layout.channels > 1 && inner < kShortestRun && !few;
    runs = layout.outer * layout.channels;
    pieces = std::max<int64_t>(1, ceil_div(inner, kChunk));
    const int64_t period = layout.channels * layout.inner, numel = layout.outer * period;
    repeats =
        std::max<int64_t>(1, std::min(layout.outer, kShortestRow / std::max<int64_t>(1, period)));
    columns = period * repeats;
    full_rows = columns ? numel / columns : 0;
    rest = numel - full_rows * columns;
    tile = std::min(columns, kTileColumns);  // narrow, so that bands are long, and partial sums few
    band = std::max(ceil_div(kChunk, std::max<int64_t>(1, tile)), ceil_div(full_rows, kMostBands));
  }

  int64_t bands() const { return ceil_div(full_rows, band); }
  int64_t tiles() const { return ceil_div(columns, tile); }
  /// Pieces of work to give to a thread at a time.
  int64_t grain() const {
    const int64_t numel = rows ? tile * std::min(band, full_rows) : inner;
    return std::max<int64_t>(1, kChunk / std::max<int64_t>(1, numel));
  }
};

/// The numbers of one row's columns.
at::Tensor row_of(const at::Tensor& numbers, const Plan& plan) {
  if (plan.columns == numbers.numel()) return numbers;
  return numbers.repeat_interleave(plan.inner).repeat({plan.repeats});
}

/// Where the elements of the inputs, or of their gradients, lie, or a parameter's numbers; null for
/// a tensor that is absent.
template <class Void, int kTensors>
struct Addresses {
  std::array<Void*, kTensors> first{};
  /// Bytes of a row, and of the gap behind it.
  int64_t row = 1;
  std::array<int64_t, kTensors> gaps{};

  /// Those of the elements that lie so many bytes behind the first ones, gaps not counted.
  std::array<Void*, kTensors> at(int64_t bytes) const {
    using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
    auto addresses = first;
    for (size_t i = 0; i < kTensors; ++i) {
      if (!addresses[i]) continue;
      const int64_t gap = gaps[i] ? bytes / row * gaps[i] : 0;
      addresses[i] = static_cast<Byte*>(addresses[i]) + bytes + gap;
    }
    return addresses;
  }
};

template <int kTensors>
Addresses<const void, kTensors> addresses_of(at::TensorList tensors) {
  Addresses<const void, kTensors> addresses;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].defined()) addresses.first[i] = tensors[i].const_data_ptr();
  }
  return addresses;
}

/// Of tensors that may have gaps between rows of such a length.
template <int kTensors>
Addresses<const void, kTensors> addresses_of_rows(at::TensorList tensors, int64_t length) {
  auto addresses = addresses_of<kTensors>(tensors);
  const int64_t size = tensors[0].element_size();
  addresses.row = length * size;
  for (size_t i = 0; i < tensors.size(); ++i)
    addresses.gaps[i] = gap_between_rows(tensors[i]) * size;
  return addresses;
}

/// The parameter's numbers, where in rows written out for each column, and their size in bytes.
struct Numbers {
  std::array<at::Tensor, kMostNumbers> tensors;
  Addresses<const void, kMostNumbers> first;
  int64_t size;

  Numbers(const Parameter& parameter, const Plan& plan) : tensors(parameter.numbers) {
    if (plan.rows) {
      for (auto& numbers : tensors) {
        if (numbers.defined()) numbers = row_of(numbers, plan);
      }
    }
    first = addresses_of<kMostNumbers>(tensors);
    size = tensors[0].element_size();
  }
  /// From those of a channel or column on.
  std::array<const void*, kMostNumbers> at(int64_t i) const { return first.at(i * size); }
};

void Cpu::forward(Activation activation, at::TensorList inputs, const Parameter& parameter,
                  const at::Tensor& output) {
  const auto& input = inputs[0];
  const int64_t numel = input.numel();
  if (numel == 0) return;
  const auto& kernels = kernels_for(activation, input.scalar_type());
  const Plan plan(parameter.layout);
  const Numbers numbers(parameter, plan);
  const int64_t size = input.element_size();
  const auto x = addresses_of_rows<kMostInputs>(inputs, plan.inner);
  auto* y = static_cast<char*>(output.mutable_data_ptr());
  const bool stream =
      x.first[0] != y && numel * size >= kStreamBytes && plan.inner * size >= kStreamedRunBytes;

  if (plan.rows) {
    parallel_for(plan.bands() * plan.tiles(), plan.grain(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / plan.tiles() * plan.band, column = i % plan.tiles() * plan.tile;
        const int64_t at = (row * plan.columns + column) * size;
        kernels.forward_rows(x.at(at).data(), numbers.at(column).data(), y + at,
                             std::min(plan.band, plan.full_rows - row),
                             std::min(plan.tile, plan.columns - column), plan.columns);
      }
    });
    const int64_t at = (numel - plan.rest) * size;
    // Nothing, if rest is 0.
    kernels.forward_rows(x.at(at).data(), numbers.at(0).data(), y + at, 1, plan.rest, plan.rest);
    return;
  }
  const int64_t channels = parameter.layout.channels;
  parallel_for(plan.runs * plan.pieces, plan.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin, next; i < end; i = next) {
      const int64_t run = i / plan.pieces, start = i % plan.pieces * kChunk;
      next = std::min(end, (run + 1) * plan.pieces);  // pieces of one run in one go
      const int64_t at = (run * plan.inner + start) * size;
      kernels.forward(x.at(at).data(), numbers.at(run % channels).data(), y + at,
                      std::min((next - i) * kChunk, plan.inner - start), stream, channels == 1);
    }
  });
}

/// For each channel the slots that its sum is made of: (outer, channels, inner). They stay with the
/// thread from call to call: freed beside the outputs, a block of their size changes where the next
/// outputs lie, and in one process of four these took fresh pages in every call, tenfold time.
struct Slots {
  std::vector<double>& sums;
  int64_t inner;

  Slots(const Plan& plan, int64_t channels, bool wanted) : sums(kept()) {
    int64_t count;
    if (plan.inner == 0) {  // no elements: the layout has one channel, whatever epsilon has
      inner = 1;
      count = channels;
    } else if (plan.rows) {
      inner = plan.inner;  // a band's columns: (repeats, channels, inner)
      count = (plan.bands() + (plan.rest > 0)) * plan.columns;
    } else {
      inner = plan.pieces;  // a slot for each piece of each run
      count = plan.runs * plan.pieces;
    }
    sums.assign(wanted ? count : 0, 0);
  }
  Slots(const Slots&) = delete;
  ~Slots() {
    if (sums.capacity() > kMostKeptSums) std::vector<double>().swap(sums);
  }

 private:
  static std::vector<double>& kept() {
    static thread_local std::vector<double> sums;
    return sums;
  }
};

/// The gradient of epsilon: its slots added up, in a fixed order, where the first of them are.
void fold(const Slots& slots, const at::Tensor& folded) {
  double* const sums = slots.sums.data();
  const int64_t channels = folded.numel(), count = slots.sums.size() / slots.inner;
  if (slots.inner > 1) {
    for (int64_t i = 0; i < count; ++i)
      sums[i] = std::accumulate(sums + i * slots.inner, sums + (i + 1) * slots.inner, 0.0);
  }
  for (int64_t i = channels; i < count; i += channels) {
    for (int64_t channel = 0; channel < channels; ++channel) sums[channel] += sums[i + channel];
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, folded.scalar_type(), "fold", [&] {
    std::copy_n(sums, channels, folded.mutable_data_ptr<scalar_t>());
  });
}

/// Writes the gradients of the inputs to where they are wanted, and the slots of epsilon's if that
/// is.
void compute_gradients(Activation activation, const at::Tensor& grad_output, at::TensorList inputs,
                       const Plan& plan, const Numbers& numbers, int64_t channels,
                       const Addresses<void, kMostInputs>& gx, std::vector<double>& sums) {
  const auto& input = inputs[0];
  const int64_t numel = input.numel();
  if (numel == 0) return;
  const auto& kernels = kernels_for(activation, input.scalar_type());
  const int64_t size = input.element_size();
  const auto g = addresses_of_rows<1>(grad_output, plan.inner);
  const auto x = addresses_of_rows<kMostInputs>(inputs, plan.inner);
  const bool stream = numel * size >= kStreamBytes && plan.inner * size >= kStreamedRunBytes;
  const bool want_epsilon = !sums.empty();

  if (plan.rows) {
    parallel_for(plan.bands() * plan.tiles(), plan.grain(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t band = i / plan.tiles(), row = band * plan.band,
                      column = i % plan.tiles() * plan.tile;
        const int64_t at = (row * plan.columns + column) * size;
        kernels.backward_rows(g.at(at)[0], x.at(at).data(), numbers.at(column).data(),
                              gx.at(at).data(),
                              want_epsilon ? sums.data() + band * plan.columns + column : nullptr,
                              std::min(plan.band, plan.full_rows - row),
                              std::min(plan.tile, plan.columns - column), plan.columns);
      }
    });
    if (plan.rest > 0) {
      const int64_t at = (numel - plan.rest) * size;
      kernels.backward_rows(g.at(at)[0], x.at(at).data(), numbers.at(0).data(), gx.at(at).data(),
                            want_epsilon ? sums.data() + plan.bands() * plan.columns : nullptr, 1,
                            plan.rest, plan.rest);
    }
    return;
  }
  parallel_for(plan.runs * plan.pieces, plan.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t run = i / plan.pieces, start = i % plan.pieces * kChunk;
      const int64_t at = (run * plan.inner + start) * size;
      kernels.backward(g.at(at)[0], x.at(at).data(), numbers.at(run % channels).data(),
                       gx.at(at).data(), want_epsilon ? &sums[i] : nullptr,
                       std::min(kChunk, plan.inner - start), stream, channels == 1);
    }
  });
}

template <size_t kWanted>
std::array<at::Tensor, kWanted> Cpu::backward(Activation activation, const at::Tensor& grad_output,
                                              at::TensorList inputs, const Parameter& parameter,
                                              const std::array<bool, kWanted>& wanted) {
  std::array<at::Tensor, kWanted> grads;
  if (std::none_of(wanted.begin(), wanted.end(), [](bool want) { return want; })) return grads;
  // The largest block last, and no other while the kernels run: then the next call finds it again.
  // A small one behind it is freed with it, and takes a part of its place in the next call; so the
  // next gradient lies in fresh pages, which take ten times as long as computing it.
  const Plan plan(parameter.layout);
  const Numbers numbers(parameter, plan);
  const Slots slots(plan, parameter.numbers[0].numel(), wanted.back());
  if (wanted.back()) grads.back() = empty_small(parameter.numbers[0].numel(), parameter.type);
  Addresses<void, kMostInputs> gx;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!wanted[i]) continue;
    grads[i] = empty_output(inputs[0]);
    gx.first[i] = grads[i].mutable_data_ptr();
  }
  compute_gradients(activation, grad_output, inputs, plan, numbers, parameter.layout.channels, gx,
                    slots.sums);
  if (wanted.back()) fold(slots, grads.back());
  return grads;
}

}  // namespace

TORCH_LIBRARY_IMPL(crrelu_ext, CPU, m) { Operators<Cpu>::implement(m); }

}  // namespace crrelu
