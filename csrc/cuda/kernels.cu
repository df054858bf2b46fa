#include "histogram.cuh"
#include "plan.cuh"

namespace crrelu::cuda {
namespace {

template <class F>
struct Tables {
  template <class S>
  static constexpr Kernels kernels_of() {
    using L = Launches<F, S>;
    return {L::forward, L::backward, L::slots};
  }
  /// Indexed by Storage.
  static constexpr Kernels kernels[kStorages] = {kernels_of<float>(), kernels_of<double>(),
                                                 kernels_of<BFloat16>(), kernels_of<Half>()};
};

}  // namespace

const Kernels& kernels(Activation activation, Storage storage) {
  const auto* table = activation == Activation::kPlain    ? Tables<CRReLU>::kernels
                      : activation == Activation::kGated  ? Tables<CRReLUGated>::kernels
                      : activation == Activation::kPlaced ? Tables<CRReLUPlaced>::kernels
                                                          : Tables<Tabulated>::kernels;
  return table[static_cast<int>(storage)];
}

void prepare_table(const Machine& machine, const void* table, bool table_is_double, int32_t knots,
                   Storage storage, void* prepared) {
  const bool to_double = storage == Storage::kDouble;
  const auto launches = table_is_double ? to_double ? launch_prepare_table<double, double>
                                                    : launch_prepare_table<double, float>
                        : to_double     ? launch_prepare_table<float, double>
                                        : launch_prepare_table<float, float>;
  launches(machine, table, knots, prepared);
}

void count(const Machine& machine, Storage storage, const void* input, const Layout& layout,
           const float* place, const Samples& samples, int64_t* counts) {
  const auto launches = storage == Storage::kFloat      ? launch_count<float>
                        : storage == Storage::kDouble   ? launch_count<double>
                        : storage == Storage::kBFloat16 ? launch_count<BFloat16>
                                                        : launch_count<Half>;
  launches(machine, input, place, layout, samples, counts);
}

}  // namespace crrelu::cuda
