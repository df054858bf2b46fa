// Measuring a density while a network trains: a sample of a tensor's elements, counted in bins.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <cmath>

#include "checks.h"

namespace crrelu {
namespace {

// In units of the scale, from the location: 256 bins, over 8 units on both sides. The counts also
// have a place for what lies below, above, and for NaN and infinities.
constexpr int64_t kBinsPerUnit = 16, kBins = 2 * 8 * kBinsPerUnit;
constexpr int64_t kBelow = 0, kAbove = kBins + 1, kNotFinite = kBins + 2, kCounts = kBins + 3;

void check(const at::Tensor& input, const at::Tensor& place, int64_t samples,
           const at::Tensor& counts) {
  TORCH_CHECK_TYPE(is_supported(input.scalar_type()), "count_: input has dtype ", dtype_name(input),
                   "; allowed are float32, float64, bfloat16 and float16");
  TORCH_CHECK_VALUE(place.sym_numel() == 2 && place.scalar_type() == at::kFloat,
                    "count_: place has shape ", place.sym_sizes(), " and dtype ", dtype_name(place),
                    "; allowed are location and scale, float32");
  TORCH_CHECK_VALUE(samples > 0, "count_: samples is ", samples, "; allowed are 1 and more");
  TORCH_CHECK_VALUE(counts.sym_numel() == kCounts && counts.scalar_type() == at::kLong,
                    "count_: counts has shape ", counts.sym_sizes(), " and dtype ",
                    dtype_name(counts), "; allowed is (", kCounts, ",), int64");
  TORCH_CHECK(input.device() == place.device() && input.device() == counts.device(),
              "count_: input is on ", input.device(), ", place on ", place.device(),
              " and counts on ", counts.device(), "; all must be on the same device");
}

/// Every so many-th element is looked at; odd, so that it does not always meet the same channel.
int64_t stride_for(int64_t numel, int64_t samples) { return numel / samples | 1; }

void count_cpu(const at::Tensor& input, const at::Tensor& place, int64_t samples,
               at::Tensor& counts) {
  check(input, place, samples, counts);
  const auto dense = input.is_non_overlapping_and_dense() ? input : input.contiguous();
  const int64_t numel = dense.numel(), stride = stride_for(numel, samples);
  const auto where = place.contiguous();
  const float location = where.const_data_ptr<float>()[0];
  const float bins_per_unit = kBinsPerUnit / where.const_data_ptr<float>()[1];
  TORCH_CHECK_VALUE(counts.is_contiguous(), "count_: counts has gaps; allowed is none");
  auto* slots = counts.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dense.scalar_type(), "count_", [&] {
    const auto* x = dense.const_data_ptr<scalar_t>();
    for (int64_t i = 0; i < numel; i += stride) {
      const auto value = static_cast<float>(x[i]);
      const float bin = std::floor((value - location) * bins_per_unit) + kBins / 2;
      const int64_t slot = !std::isfinite(value) ? kNotFinite
                           : bin < 0             ? kBelow
                           : bin >= kBins        ? kAbove
                                                 : static_cast<int64_t>(bin) + 1;
      ++slots[slot];
    }
  });
}

/// On any other device.
void count_composed(const at::Tensor& input, const at::Tensor& place, int64_t samples,
                    at::Tensor& counts) {
  check(input, place, samples, counts);
  if (input.numel() == 0) return;
  const auto sample =
      input.flatten().slice(0, 0, input.numel(), stride_for(input.numel(), samples));
  const auto x = sample.to(at::kFloat);
  const auto bin = ((x - place[0]) * (kBinsPerUnit / place[1])).floor() + kBins / 2;
  const auto slot = at::where(x.isfinite(), bin.clamp(-1, kBins) + 1, kNotFinite).to(at::kLong);
  counts.scatter_add_(0, slot, at::ones_like(slot));
}

void count_meta(const at::Tensor& input, const at::Tensor& place, int64_t samples,
                at::Tensor& counts) {
  check(input, place, samples, counts);
}

}  // namespace

TORCH_LIBRARY_IMPL(crrelu_ext, CPU, m) { m.impl("count_", count_cpu); }
TORCH_LIBRARY_IMPL(crrelu_ext, CompositeExplicitAutograd, m) { m.impl("count_", count_composed); }
TORCH_LIBRARY_IMPL(crrelu_ext, Meta, m) { m.impl("count_", count_meta); }

}  // namespace crrelu
