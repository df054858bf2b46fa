// Sums over a block, in an order that depends on the block's size alone.
#pragma once

#include "machine.cuh"

namespace crrelu::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;

/// The sum over all threads of a one-dimensional block of whole warps, in its first thread.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double warps[kMostThreads / kWarp];
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_down_sync(0xffffffff, value, distance);
  }
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (unsigned k = 0; k < blockDim.x / kWarp; ++k) sum += warps[k];
  }
  return sum;
}

}  // namespace
}  // namespace crrelu::cuda
