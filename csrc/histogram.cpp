// The operator that counts (histogram.h); its CUDA kernel is in cuda/histogram.cuh.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/functorch/BatchedTensorImpl.h>
#include <torch/library.h>

#include <type_traits>

#include "checks.h"
#include "dense.h"
#include "histogram.h"
#include "operators.h"

namespace crrelu {

namespace {

void count_cpu(const at::Tensor& input, const at::Tensor& place, int64_t samples,
               int64_t channel_dim, at::Tensor& counts) {
  check_count_arguments(input, place, samples, channel_dim, counts);
  if (input.numel() == 0 || gradients_are_computed()) return;
  const Sampled sampled(input, place.size(1), channel_dim);
  const auto where = place.contiguous();
  const auto& layout = sampled.layout;
  const Samples sample(layout, sampled.rows, samples);
  const float *location = where.const_data_ptr<float>(), *scale = location + layout.channels;
  auto* slots = counts.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "count_", [&] {
    using Real = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const auto* x = sampled.tensor.const_data_ptr<scalar_t>();
    // Read many, then count them: what the caches do not have comes slowly, but together.
    constexpr int64_t kTogether = 64;
    Real values[kTogether];
    int64_t channels[kTogether];
    int64_t k = 0, c = 0;
    while (k < sample.count) {
      int64_t read = 0;
      for (; read < kTogether && k < sample.count; ++read) {
        values[read] = static_cast<Real>(x[sample.index(layout, c, k)]);
        channels[read] = c;
        if (++c == layout.channels) c = 0, ++k;
      }
      for (int64_t i = 0; i < read; ++i) {
        const int64_t channel = channels[i];
        ++slots[channel * kCounts + slot_of(values[i], location[channel], scale[channel])];
      }
    }
  });
}

/// On any other device.
void count_composed(const at::Tensor& input, const at::Tensor& place, int64_t samples,
                    int64_t channel_dim, at::Tensor& counts) {
  check_count_arguments(input, place, samples, channel_dim, counts);
  if (input.numel() == 0 || gradients_are_computed()) return;
  const int64_t channels = place.size(1);
  const auto by_channel = channels == 1 ? input.reshape({-1, 1})
                                        : input.movedim(channel_dim, -1).reshape({-1, channels});
  const int64_t rows = by_channel.size(0);
  const Samples sample({rows, channels, 1}, {rows * channels, rows * channels}, samples);
  const auto places = at::empty({sample.count}, at::kLong);
  auto* const row = places.mutable_data_ptr<int64_t>();
  for (int64_t k = 0; k < sample.count; ++k) row[k] = sample.place(k);
  const auto x = by_channel.index_select(0, places.to(input.device()));
  const auto bin = ((x.to(at::kFloat) - place[0]) * (kBinsPerUnit / place[1])).floor() + kBins / 2;
  const auto within = at::where(bin >= 0, bin.clamp_max(kBins), -1);  // -1 for NaN, too
  const auto slot = at::where(x.isfinite(), within + 1, kNotFinite).to(at::kLong);
  counts.scatter_add_(1, slot.t(), at::ones_like(slot.t()));
}

void count_meta(const at::Tensor& input, const at::Tensor& place, int64_t samples,
                int64_t channel_dim, at::Tensor& counts) {
  check_count_arguments(input, place, samples, channel_dim, counts);
}

/// Under torch.func.vmap the elements of all examples count, and of an ensemble, whose layers have
/// places of their own, none.
void count_batched(const at::Tensor& input, const at::Tensor& place, int64_t samples,
                   int64_t channel_dim, at::Tensor& counts) {
  const auto* batched = at::functorch::maybeGetBatchedImpl(input);
  if (!batched || at::functorch::isBatchedTensor(place)) return;
  const c10::impl::ExcludeDispatchKeyGuard unwrapped(c10::DispatchKey::FuncTorchBatched);
  count_op().call(batched->value().movedim(batched->bdim(), 0), place, samples,
                  channel_dim < 0 ? channel_dim : channel_dim + 1, counts);
}

}  // namespace

TORCH_LIBRARY_IMPL(crrelu_ext, CPU, m) { m.impl("count_", count_cpu); }
TORCH_LIBRARY_IMPL(crrelu_ext, CompositeExplicitAutograd, m) { m.impl("count_", count_composed); }
TORCH_LIBRARY_IMPL(crrelu_ext, Meta, m) { m.impl("count_", count_meta); }
TORCH_LIBRARY_IMPL(crrelu_ext, FuncTorchBatched, m) { m.impl("count_", count_batched); }

}  // namespace crrelu
