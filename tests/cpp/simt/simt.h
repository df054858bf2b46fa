// A GPU of ours on the CPU, for csrc/cuda compiled by a plain C++ compiler (csrc/cuda/machine.cuh
// includes this): the threads of a block are fibers, which give way at barriers and shuffles;
// blocks run one after another, in shuffled order, and so do the fibers between two barriers. It
// knows no time. What a kernel must not do is noted and reported, not survived by luck: accesses
// outside the call's tensors or off their alignment, barriers and shuffles that not all threads
// reach.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cpu/storage.h"

#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static  // the blocks take turns

struct uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  uint32_t x, y, z;
  explicit dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};
struct CUstream_st;

/// Of the fiber that runs.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

/// Runs `thread` for each thread of the grid's blocks.
void run(dim3 grid, dim3 block, const std::function<void()>& thread);
void synchronize();
/// What the lane `distance` further on hands in; the own value where there is none.
double shuffle_down(double value, int distance);
/// Notes an access to global memory, and says whether it can be made.
bool access(const void* p, size_t size, size_t alignment, bool writes);
/// By how many ulp exp2_approx is to miss the correctly rounded result of this argument.
int exp2_error(float x);

}  // namespace simt

inline void __syncthreads() { simt::synchronize(); }
inline double __shfl_down_sync(uint32_t, double value, int distance) {
  return simt::shuffle_down(value, distance);
}

namespace crrelu::cuda {
namespace {

inline float exp2_approx(float x) {
  float y = static_cast<float>(std::exp2(static_cast<double>(x)));
  const int error = simt::exp2_error(x);
  for (int k = 0; k < std::abs(error); ++k) y = std::nextafter(y, error > 0 ? INFINITY : 0.0f);
  return y;
}

inline float to_float(Half x) {
  _Float16 number;
  std::memcpy(&number, &x, sizeof(number));
  return number;
}
inline uint32_t to_half2(float first, float second) {
  const _Float16 numbers[2] = {static_cast<_Float16>(first), static_cast<_Float16>(second)};
  uint32_t both;
  std::memcpy(&both, numbers, sizeof(both));
  return both;
}
inline uint32_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (std::isnan(x)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t to_bfloat16x2(float first, float second) {
  return to_bfloat16(second) << 16 | to_bfloat16(first);
}

template <class T>
T load(const T* p) {
  // A uint4 stands for 16 bytes at a time, which a GPU reads from multiples of 16 alone.
  T value{};
  if (simt::access(p, sizeof(T), sizeof(T), false)) std::memcpy(&value, p, sizeof(value));
  return value;
}
template <class T>
void store(T* p, T value) {
  if (simt::access(p, sizeof(T), sizeof(T), true)) std::memcpy(p, &value, sizeof(value));
}

inline void add(int32_t* shared) { ++*shared; }
inline void add(int64_t* p, int64_t number) {
  if (simt::access(p, sizeof(*p), sizeof(*p), true)) *p += number;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, CUstream_st*,
            const Arguments&... arguments) {
  simt::run(grid, block, [&] { kernel(arguments...); });
}

}  // namespace
}  // namespace crrelu::cuda
