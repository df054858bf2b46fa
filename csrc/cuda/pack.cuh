// 16 bytes of elements at a time, at any alignment.
#pragma once

#include "vec_cuda.cuh"

namespace crrelu::cuda {
namespace {

/// A pack as it lies in memory: the first element in the lowest bits.
using Bits = unsigned __int128;

template <int kBytes>
struct UnsignedInteger;
template <>
struct UnsignedInteger<2> {
  using type = uint16_t;
};
template <>
struct UnsignedInteger<4> {
  using type = uint32_t;
};
template <>
struct UnsignedInteger<8> {
  using type = uint64_t;
};
template <class S>
using UnsignedOf = typename UnsignedInteger<sizeof(S)>::type;

template <class S>
constexpr int kLanesOf = kPackBytes / sizeof(S);

/// Of a pack, and of what lies around it, the elements [begin, end), counted from the pack's first,
/// belong to the tensor; the others are neither read nor written.
struct Valid {
  int begin, end;
  __device__ __forceinline__ bool covers(int first, int last) const {
    return begin <= first && last <= end;
  }
};

/// Bytes behind the last multiple of 16.
__device__ __forceinline__ int misalignment(const void* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % kPackBytes);
}

/// A pack on a multiple of 16 bytes, all of it.
template <class S>
__device__ __forceinline__ Bits load_whole(const S* p) {
  return bit_cast<Bits>(load(reinterpret_cast<const uint4*>(p)));
}
template <class S>
__device__ __forceinline__ void store_whole(S* p, Bits bits) {
  store(reinterpret_cast<uint4*>(p), bit_cast<uint4>(bits));
}

/// Any pack. Absent elements read zeros.
template <class S>
__device__ __forceinline__ Bits load_pack(const S* p, Valid valid) {
  constexpr int kLanes = kLanesOf<S>, kWidth = 8 * sizeof(S);
  const int offset = misalignment(p);
  if (offset == 0 && valid.covers(0, kLanes)) return load_whole(p);
  if (offset != 0 && valid.covers(-kLanes, 2 * kLanes)) {
    const auto* aligned = reinterpret_cast<const S*>(reinterpret_cast<const char*>(p) - offset);
    const Bits first = load_whole(aligned), second = load_whole(aligned + kLanes);
    return first >> 8 * offset | second << (128 - 8 * offset);
  }
  Bits bits = 0;
#pragma unroll 1
  for (int k = 0; k < kLanes; ++k) {
    Bits element = 0;
    if (valid.covers(k, k + 1)) element = bit_cast<UnsignedOf<S>>(load(p + k));
    bits = bits >> kWidth | element << (128 - kWidth);
  }
  return bits;
}

template <class S>
__device__ __forceinline__ void store_pack(S* p, Valid valid, Bits bits) {
  constexpr int kLanes = kLanesOf<S>, kWidth = 8 * sizeof(S);
  if (misalignment(p) == 0 && valid.covers(0, kLanes)) return store_whole(p, bits);
#pragma unroll 1
  for (int k = 0; k < kLanes; ++k) {
    if (valid.covers(k, k + 1)) store(p + k, bit_cast<S>(static_cast<UnsignedOf<S>>(bits)));
    bits >>= kWidth;
  }
}

/// A pack's numbers in lockstep.
template <class S>
using Numbers = typename LockstepOf<typename Computed<S>::Lane, kLanesOf<S>>::type;

template <class S>
__device__ __forceinline__ Numbers<S> unpack(Bits bits) {
  S lanes[kLanesOf<S>];
  std::memcpy(lanes, &bits, sizeof(lanes));
  return AnyOrder<typename Numbers<S>::Half, S>::load(lanes);
}
template <class S>
__device__ __forceinline__ Bits pack_of(Numbers<S> numbers) {
  S lanes[kLanesOf<S>];
  AnyOrder<typename Numbers<S>::Half, S>::store(numbers, lanes);
  Bits bits;
  std::memcpy(&bits, lanes, sizeof(bits));
  return bits;
}

}  // namespace
}  // namespace crrelu::cuda
