// The kernel that counts (../histogram.h): in shared memory by block, in integers, so that the
// order of the additions does not matter.
#pragma once

#include "../histogram.h"
#include "kernels.h"
#include "pack.cuh"

namespace crrelu::cuda {
namespace {

constexpr int kCountingThreads = 256;
/// Samples of a channel that one block counts, about.
constexpr int64_t kSamplesOfOneBlock = 4096;

/// Blocks share a channel; they are (parts, channels).
template <class S>
__global__ void __launch_bounds__(kCountingThreads)
    count_samples(const S* input, const float* place, Layout layout, Samples samples,
                  int64_t* counts) {
  __shared__ int32_t bins[kCounts];
  for (int k = threadIdx.x; k < kCounts; k += kCountingThreads) bins[k] = 0;
  __syncthreads();
  const int64_t channel = blockIdx.x % layout.channels, part = blockIdx.x / layout.channels;
  const int64_t step = gridDim.x / layout.channels * kCountingThreads;
  const float location = load(place + channel), scale = load(place + layout.channels + channel);
  for (int64_t k = part * kCountingThreads + threadIdx.x; k < samples.count; k += step) {
    const S stored = load(input + samples.index(layout, channel, k));
    add(&bins[slot_of(Computed<S>::Lane::load(&stored).v, location, scale)]);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < kCounts; k += kCountingThreads) {
    if (bins[k] > 0) add(counts + channel * kCounts + k, int64_t{bins[k]});
  }
}

template <class S>
void launch_count(const Machine& machine, const void* input, const float* place,
                  const Layout& layout, const Samples& samples, int64_t* counts) {
  const int64_t parts = (samples.count + kSamplesOfOneBlock - 1) / kSamplesOfOneBlock;
  launch(count_samples<S>, dim3(static_cast<uint32_t>(parts * layout.channels)),
         dim3(kCountingThreads), machine.stream, static_cast<const S*>(input), place, layout,
         samples, counts);
}

}  // namespace
}  // namespace crrelu::cuda
