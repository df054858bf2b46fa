#include "harness.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/kernels.h"

namespace {

using crrelu::Activation;
using crrelu::Storage;

constexpr int kSizes[crrelu::kStorages] = {4, 8, 2, 2};

int64_t numel(const Call& call) { return call.sizes[0] * call.sizes[1] * call.sizes[2]; }
int64_t bytes(const Call& call) { return numel(call) * kSizes[call.storage]; }
/// Of epsilons, or of a prepared table.
int64_t epsilon_bytes(const Call& call) {
  if (call.intervals > 0)
    return (crrelu::kTableHeader + 4 * call.intervals) * (kSizes[call.storage] == 8 ? 8 : 4);
  return call.sizes[1] * (call.epsilon_is_float ? 4 : kSizes[call.storage]);
}
crrelu::Layout layout(const Call& call) { return {call.sizes[0], call.sizes[1], call.sizes[2]}; }

/// Where there are gaps, each row alone may be read.
crrelu::cuda::Source source(const Call& call, const void* first, int64_t gap) {
  if (gap == 0) {
    simt::allow(first, bytes(call), false);
  } else {
    const int64_t size = kSizes[call.storage], length = call.sizes[2];
    for (int64_t row = 0; row < call.sizes[0]; ++row)
      simt::allow(static_cast<const char*>(first) + row * (length + gap) * size, length * size,
                  false);
  }
  return {first, gap};
}

crrelu::cuda::Operands operands(const Call& call) {
  simt::allow(call.numbers[0], epsilon_bytes(call), false);
  for (int k : {1, 2})
    simt::allow(call.numbers[k], call.sizes[1] * (kSizes[call.storage] == 8 ? 8 : 4), false);
  return {{source(call, call.inputs[0], call.gaps[0]), source(call, call.inputs[1], call.gaps[1])},
          {call.numbers[0], call.numbers[1], call.numbers[2]},
          call.epsilon_is_float != 0,
          layout(call)};
}

const crrelu::cuda::Kernels& kernels(const Call& call) {
  return crrelu::cuda::kernels(static_cast<Activation>(call.activation),
                               static_cast<Storage>(call.storage));
}

}  // namespace

const char* simt_forward(const Settings* settings, const Call* call, void* output, Counts* counts) {
  simt::begin(*settings);
  simt::allow(output, bytes(*call), true);
  kernels(*call).forward({settings->multiprocessors, nullptr}, operands(*call), output);
  return simt::end(counts);
}

const char* simt_prepare_table(const Settings* settings, const void* table, int32_t is_double,
                               int32_t knots, int32_t storage, void* prepared, int64_t size,
                               Counts* counts) {
  simt::begin(*settings);
  simt::allow(table, 3 * knots * (is_double ? 8 : 4), false);
  simt::allow(prepared, size, true);
  crrelu::cuda::prepare_table({settings->multiprocessors, nullptr}, table, is_double != 0, knots,
                              static_cast<Storage>(storage), prepared);
  return simt::end(counts);
}

const char* simt_count(const Settings* settings, const Call* call, int64_t samples,
                       const float* place, int64_t* bins, Counts* counts) {
  simt::begin(*settings);
  const auto input = source(*call, call->inputs[0], call->gaps[0]);
  const int64_t length = input.gap ? call->sizes[2] : numel(*call);
  simt::allow(place, 2 * call->sizes[1] * 4, false);
  simt::allow(bins, call->sizes[1] * crrelu::kCounts * 8, true);
  crrelu::cuda::count({settings->multiprocessors, nullptr}, static_cast<Storage>(call->storage),
                      input.first, layout(*call), place,
                      crrelu::Samples(layout(*call), {length, length + input.gap}, samples), bins);
  return simt::end(counts);
}

const char* simt_backward(const Settings* settings, const Call* call, const void* grad_output,
                          int64_t grad_gap, void* const* grad_inputs, void* grad_epsilon,
                          Counts* counts) {
  simt::begin(*settings);
  simt::allow(grad_inputs[0], bytes(*call), true);
  simt::allow(grad_inputs[1], bytes(*call), true);
  simt::allow(grad_epsilon, epsilon_bytes(*call), true);
  const auto ops = operands(*call);
  // NaN: a slot that is read before it is written shows.
  std::vector<double> slots(kernels(*call).slots(ops.layout, settings->multiprocessors), NAN);
  simt::allow(slots.data(), static_cast<int64_t>(slots.size() * sizeof(double)), true);
  kernels(*call).backward({settings->multiprocessors, nullptr}, ops,
                          source(*call, grad_output, grad_gap), grad_inputs, grad_epsilon,
                          slots.empty() ? nullptr : slots.data());
  return simt::end(counts);
}
