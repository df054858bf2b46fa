// What the kernels ask of the machine. Compiled by nvcc that is the GPU; compiled by any other
// compiler it is the one in tests/cpp/simt, which gives the same names a meaning on the CPU.
#pragma once

#include <cstdint>

#include "../cpu/storage.h"

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace crrelu::cuda {
namespace {

/// 2^x, by the one instruction there is for it; within 2 ulp, and 1 where |x| is small.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }
/// Two numbers, each rounded to nearest; the first in the low half.
__device__ __forceinline__ uint32_t to_half2(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return uint32_t{__half_as_ushort(__high2half(pair))} << 16 | __half_as_ushort(__low2half(pair));
}
__device__ __forceinline__ uint32_t to_bfloat16x2(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return uint32_t{__bfloat16_as_ushort(__high2bfloat16(pair))} << 16 |
         __bfloat16_as_ushort(__low2bfloat16(pair));
}

/// Every access of the kernels to global memory.
template <class T>
__device__ __forceinline__ T load(const T* p) {
  return *p;
}
template <class T>
__device__ __forceinline__ void store(T* p, T value) {
  *p = value;
}
/// The compiler may take an assignment apart into four.
__device__ __forceinline__ void store(uint4* p, uint4 value) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(p)), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
               : "memory");
}

/// Adds one, in shared memory; a number, in global memory. No other thread's addition is lost.
__device__ __forceinline__ void add(int32_t* shared) { atomicAdd(shared, 1); }
__device__ __forceinline__ void add(int64_t* p, int64_t number) {
  atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(number));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
            const Arguments&... arguments) {
  kernel<<<grid, block, 0, stream>>>(arguments...);
}

}  // namespace
}  // namespace crrelu::cuda

#else
#include "simt.h"
#endif
