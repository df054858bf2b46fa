// Load, compute, store, and sum, over an activation F (crrelu_math.h) and a stored type S. Written
// once; the launches are in plan.cuh.
//
// A thread has several packs in flight and computes a pack's lanes in lockstep. Packs lie on
// multiples of 16 bytes of what is written; the first and the last of a tensor may have absent
// lanes, which read zeros and take the same arithmetic: so no result depends on an element's
// position. Indices have 64 bits up to a tile's beginning, 32 inside; of rows 64 throughout.
#pragma once

#include "kernels.h"
#include "pack.cuh"
#include "reduce.cuh"

namespace crrelu::cuda {
namespace {

constexpr int kThreads = 256;
/// At least so many blocks share a multiprocessor: 64 registers for a thread. The gated and the
/// placed form take 80; of rows, where a thread keeps a pack's epsilons and sums, 128; and so
/// where a table's rows are looked up for a pack's lanes.
constexpr int kResident = 4;
constexpr int kResidentOfRows = 2;
template <class F>
constexpr int kResidentOf = F::kNumbers == 0                      ? 2
                            : F::kInputs == 1 && F::kNumbers == 1 ? kResident
                                                                  : 3;
/// Loads of 16 bytes that a thread issues before it waits. With 1024 threads that makes 64 KiB in
/// flight per multiprocessor at most; Little's law asks for 25 KiB (4.8 TB/s · 700 ns / 132).
constexpr int kLoads = 4;

template <int kTensors>
constexpr int kPacksOf = kLoads / kTensors > 0 ? kLoads / kTensors : 1;
template <class F>
constexpr int kForwardPacks = kPacksOf<F::kInputs>;
template <class F>
constexpr int kBackwardPacks = kPacksOf<F::kInputs + 1>;

template <class S>
using Real = typename Arithmetic<S>::type;
template <class F, class S>
using Parameter = typename F::template Parameter<Numbers<S>>;

/// A channel's k-th number.
template <class S>
__device__ __forceinline__ Real<S> number_at(const Operands& operands, int k, int64_t channel) {
  const void* numbers = operands.numbers[k];
  if (k > 0) return load(static_cast<const Real<S>*>(numbers) + channel);
  if (operands.epsilon_is_float) return load(static_cast<const float*>(numbers) + channel);
  const S stored = load(static_cast<const S*>(numbers) + channel);
  return Computed<S>::Lane::load(&stored).v;
}

/// The parameter of all elements of a channel.
template <class F, class S>
__device__ __forceinline__ Parameter<F, S> parameter_of(const Operands& operands, int64_t channel) {
  if constexpr (F::kNumbers == 0) {
    return Parameter<F, S>(static_cast<const Real<S>*>(operands.numbers[0]));
  } else {
    Numbers<S> numbers[F::kNumbers];
#pragma unroll
    for (int k = 0; k < F::kNumbers; ++k)
      numbers[k] = Numbers<S>(number_at<S>(operands, k, channel));
    return Parameter<F, S>(numbers);
  }
}

/// Of float or of the stored type.
struct EpsilonGradient {
  void* values;
  bool is_float;

  template <class S>
  __device__ __forceinline__ void set(int64_t channel, double sum) const {
    if (is_float) return store(static_cast<float*>(values) + channel, static_cast<float>(sum));
    S stored;
    typename Computed<S>::Lane(static_cast<Real<S>>(sum)).store(&stored);
    store(static_cast<S*>(values) + channel, stored);
  }
};

/// Where the sums go: into slots, or, where there is one for each epsilon, to their end. Both null:
/// nowhere.
struct Sums {
  double* slots;
  EpsilonGradient gradient;

  __device__ __forceinline__ bool wanted() const { return slots || gradient.values; }
  template <class S>
  __device__ __forceinline__ void set(int64_t slot, double sum) const {
    if (slots) return store(slots + slot, sum);
    gradient.set<S>(slot, sum);
  }
};

/// grad_output, and where the gradients of the inputs go; null: not wanted.
struct Gradients {
  Source output;
  void* inputs[kMostInputs];
};

/// What a thread has in flight: packs `stride` elements apart, a multiple of a pack's, from the
/// tensor's element `first` on; of them and around them, the elements [begin, end), counted from
/// there, are the tensor's. The numbers count in Index.
template <class S, int packs, class Index>
struct Batch {
  static constexpr int kPacks = packs, kLanes = kLanesOf<S>;
  int64_t first;
  Index stride, begin, end;

  /// Gaps before a pack.
  __device__ __forceinline__ int64_t gaps(int) const { return 0; }
  __device__ __forceinline__ bool has(int q) const {
    return begin <= q * stride && q * stride + kLanes <= end;
  }
  __device__ __forceinline__ bool lacks(int q) const {
    return q * stride + kLanes <= begin || end <= q * stride;
  }
  /// Whether each pack is there as a whole or not at all; `whole` then has a bit for each one that
  /// is there.
  __device__ __forceinline__ bool is_plain(unsigned& whole) const {
    bool plain = true;
    whole = 0;
#pragma unroll
    for (int q = 0; q < kPacks; ++q) {
      plain = plain && (has(q) || lacks(q));
      whole |= static_cast<unsigned>(has(q)) << q;
    }
    return plain;
  }
  __device__ __forceinline__ Valid valid(int q) const {
    const Index before = begin - q * stride, left = end - q * stride;
    return {static_cast<int>(before < -kLanes  ? -kLanes
                             : before < kLanes ? before
                                               : kLanes),
            static_cast<int>(left < 0            ? 0
                             : left < 2 * kLanes ? left
                                                 : 2 * kLanes)};
  }
};

/// n / divisor for n < 2^31, by a multiplication.
struct Division {
  uint32_t factor, shift;

  static Division by(uint32_t divisor) {
    uint32_t shift = 0;
    while (uint64_t{1} << shift < divisor) ++shift;
    const uint64_t rest = (uint64_t{1} << shift) - divisor;
    return {static_cast<uint32_t>((rest << 32) / divisor + 1), shift};
  }
  __device__ __forceinline__ uint32_t operator()(uint32_t n) const {
    return (static_cast<uint32_t>(uint64_t{n} * factor >> 32) + n) >> shift;
  }
};

/// Of tensors that may have gaps between rows; no pack lies in two of them.
template <class S, int packs>
struct BatchOfRows : Batch<S, packs, int> {
  using Base = Batch<S, packs, int>;
  Division packs_of_row;

  __device__ __forceinline__ BatchOfRows(const Base& batch, Division packs_of_row)
      : Base(batch), packs_of_row(packs_of_row) {}
  __device__ __forceinline__ int64_t gaps(int q) const {
    const uint64_t element = this->first + q * this->stride;
    return packs_of_row(static_cast<uint32_t>(element / Base::kLanes));
  }
};

template <class F, class S>
__device__ __forceinline__ Bits value(const Bits (&inputs)[F::kInputs],
                                      const Parameter<F, S>& parameter) {
  Numbers<S> x[F::kInputs];
#pragma unroll
  for (int k = 0; k < F::kInputs; ++k) x[k] = unpack<S>(inputs[k]);
  return pack_of<S>(F::template value<Computed<S>::kPrecision>(x, parameter));
}

/// A pack in a tensor whose element `batch.first`, were there no gaps, is *first.
template <class Batch, class S>
__device__ __forceinline__ const S* pack_at(const Batch& batch, int q, const S* first,
                                            int64_t gap) {
  return first + q * batch.stride + batch.gaps(q) * gap;
}

template <class F, class S, class Batch>
__device__ __forceinline__ void forward_batch(const Batch& batch, const Operands& operands,
                                              const Parameter<F, S>& parameter, S* output) {
  constexpr int kPacks = Batch::kPacks;
  output += batch.first;
  unsigned whole;
  bool plain = batch.is_plain(whole) && misalignment(output) == 0;
  const S* sources[F::kInputs];
#pragma unroll
  for (int k = 0; k < F::kInputs; ++k) {
    sources[k] = static_cast<const S*>(operands.inputs[k].first) + batch.first;
    plain = plain && misalignment(sources[k]) == 0;
  }
  if (plain) {
    if (whole == 0) return;
    Bits inputs[kPacks][F::kInputs] = {};
#pragma unroll
    for (int q = 0; q < kPacks; ++q) {
#pragma unroll
      for (int k = 0; k < F::kInputs; ++k) {
        const S* source = pack_at(batch, q, sources[k], operands.inputs[k].gap);
        if (whole >> q & 1) inputs[q][k] = load_whole(source);
      }
    }
#pragma unroll
    for (int q = 0; q < kPacks; ++q) {
      if (whole >> q & 1) store_whole(output + q * batch.stride, value<F, S>(inputs[q], parameter));
    }
    return;
  }
#pragma unroll 1
  for (int q = 0; q < kPacks; ++q) {
    const Valid valid = batch.valid(q);
    Bits inputs[F::kInputs];
#pragma unroll
    for (int k = 0; k < F::kInputs; ++k)
      inputs[k] = load_pack(pack_at(batch, q, sources[k], operands.inputs[k].gap), valid);
    store_pack(output + q * batch.stride, valid, value<F, S>(inputs, parameter));
  }
}

template <class F, class S>
__device__ __forceinline__ auto gradients(Bits grad_output, const Bits (&inputs)[F::kInputs],
                                          const Parameter<F, S>& parameter) {
  Numbers<S> x[F::kInputs];
#pragma unroll
  for (int k = 0; k < F::kInputs; ++k) x[k] = unpack<S>(inputs[k]);
  return F::template gradients<Computed<S>::kPrecision>(unpack<S>(grad_output), x, parameter);
}

/// Returns `sum` and the terms of the parameter's gradient.
template <class F, class S, class Batch>
__device__ __forceinline__ Numbers<S> backward_batch(const Batch& batch, const Operands& operands,
                                                     const Parameter<F, S>& parameter,
                                                     const Gradients& grads, Numbers<S> sum) {
  constexpr int kPacks = Batch::kPacks;
  const S* grad_output = static_cast<const S*>(grads.output.first) + batch.first;
  const S* sources[F::kInputs];
  S* targets[F::kInputs];
  unsigned whole;
  bool plain = batch.is_plain(whole) && misalignment(grad_output) == 0;
#pragma unroll
  for (int k = 0; k < F::kInputs; ++k) {
    sources[k] = static_cast<const S*>(operands.inputs[k].first) + batch.first;
    targets[k] = grads.inputs[k] ? static_cast<S*>(grads.inputs[k]) + batch.first : nullptr;
    plain = plain && misalignment(sources[k]) == 0 && misalignment(targets[k]) == 0;
  }
  if (plain) {
    if (whole == 0) return sum;
    Bits inputs[kPacks][F::kInputs] = {}, grad_outputs[kPacks] = {};
#pragma unroll
    for (int q = 0; q < kPacks; ++q) {
      const S* grad = pack_at(batch, q, grad_output, grads.output.gap);
      if (whole >> q & 1) grad_outputs[q] = load_whole(grad);
#pragma unroll
      for (int k = 0; k < F::kInputs; ++k) {
        const S* source = pack_at(batch, q, sources[k], operands.inputs[k].gap);
        if (whole >> q & 1) inputs[q][k] = load_whole(source);
      }
    }
#pragma unroll
    for (int q = 0; q < kPacks; ++q) {
      if (!(whole >> q & 1)) continue;
      const auto result = gradients<F, S>(grad_outputs[q], inputs[q], parameter);
#pragma unroll
      for (int k = 0; k < F::kInputs; ++k) {
        if (targets[k]) store_whole(targets[k] + q * batch.stride, pack_of<S>(result.inputs[k]));
      }
      if constexpr (F::kNumbers > 0) sum = sum + result.parameter;
    }
    return sum;
  }
#pragma unroll 1
  for (int q = 0; q < kPacks; ++q) {
    const Valid valid = batch.valid(q);
    Bits inputs[F::kInputs];
#pragma unroll
    for (int k = 0; k < F::kInputs; ++k)
      inputs[k] = load_pack(pack_at(batch, q, sources[k], operands.inputs[k].gap), valid);
    const auto result = gradients<F, S>(
        load_pack(pack_at(batch, q, grad_output, grads.output.gap), valid), inputs, parameter);
#pragma unroll
    for (int k = 0; k < F::kInputs; ++k) {
      if (targets[k])
        store_pack(targets[k] + q * batch.stride, valid, pack_of<S>(result.inputs[k]));
    }
    if constexpr (F::kNumbers > 0) sum = sum + result.parameter;
  }
  return sum;
}

/// Runs: stretches of one epsilon, each cut into tiles of one block's packs. The first tile of a
/// run starts on a multiple of 16 bytes, which may lie before the run.
struct Runs {
  int64_t inner;
  uint32_t count, channels, tiles;
  /// Blocks that share a run; one takes each so many-th tile.
  uint32_t parts;
  /// Elements by which the first run starts behind a multiple of 16 bytes.
  int misaligned;
  /// Where there are gaps between rows: all rows are one run.
  Division packs_of_row;

  /// a / b and a % b, where a < b more often than not.
  static __device__ __forceinline__ uint32_t divide(uint32_t& a, uint32_t b) {
    if (a < b) return 0;
    const uint32_t quotient = a / b;
    a -= quotient * b;
    return quotient;
  }
  __device__ __forceinline__ uint32_t channel(uint32_t run) const {
    divide(run, channels);
    return run;
  }
};

template <class S, int kPacks>
constexpr int kTile = kPacks * kThreads * kLanesOf<S>;

/// This thread's packs of one tile.
template <bool kGaps, int kPacks, class S>
__device__ __forceinline__ auto batch_of(const Runs& runs, uint32_t run, uint32_t tile) {
  constexpr int kLanes = kLanesOf<S>, kFar = 2 * kTile<S, kPacks>;
  const int64_t begin = run * runs.inner;
  const int before = static_cast<int>((begin + runs.misaligned) % kLanes);
  // Counted from the run's beginning.
  const int64_t first = int64_t{tile} * kTile<S, kPacks> + threadIdx.x * kLanes - before;
  const int64_t left = runs.inner - first;
  const Batch<S, kPacks, int> batch{begin + first, kThreads * kLanes,
                                    static_cast<int>(first < kFar ? -first : -kFar),
                                    static_cast<int>(left < 0      ? 0
                                                     : left < kFar ? left
                                                                   : kFar)};
  if constexpr (kGaps) {
    return BatchOfRows<S, kPacks>(batch, runs.packs_of_row);
  } else {
    return batch;
  }
}

/// A block computes one tile.
template <class F, class S, bool kGaps>
__global__ void __launch_bounds__(kThreads, kResidentOf<F>)
    forward_runs(Operands operands, S* output, Runs runs) {
  uint32_t tile = blockIdx.x;
  const uint32_t run = Runs::divide(tile, runs.tiles);
  const auto parameter = parameter_of<F, S>(operands, runs.channel(run));
  const auto batch = batch_of<kGaps, kForwardPacks<F>, S>(runs, run, tile);
  forward_batch<F, S>(batch, operands, parameter, output);
}

/// What a thread adds up over its block's tiles, some of one run's: of one tile in the type
/// computed in, 6 additions behind each other at most; the rest in double.
template <class F, class S, bool kGaps>
__device__ __forceinline__ double sum_of_tiles(const Operands& operands, const Gradients& grads,
                                               const Runs& runs) {
  uint32_t tile = blockIdx.x;
  const uint32_t run = Runs::divide(tile, runs.parts);
  const auto parameter = parameter_of<F, S>(operands, runs.channel(run));
  double total = 0;
  for (; tile < runs.tiles; tile += runs.parts) {
    const auto batch = batch_of<kGaps, kBackwardPacks<F>, S>(runs, run, tile);
    total += sum_of_lanes(backward_batch<F, S>(batch, operands, parameter, grads, Numbers<S>(0)));
  }
  return total;
}

/// A block has one slot.
template <class F, class S, bool kGaps>
__global__ void __launch_bounds__(kThreads, kResidentOf<F>)
    backward_runs(Operands operands, Gradients grads, Sums sums, Runs runs) {
  double total = sum_of_tiles<F, S, kGaps>(operands, grads, runs);
  if (!sums.wanted()) return;
  total = block_sum(total);
  if (threadIdx.x == 0) sums.set<S>(blockIdx.x, total);
}

/// Rows: a matrix whose columns have each their epsilon. A row repeats the pattern of epsilons
/// until it is as long as a whole number of packs, and as a warp's packs; the last row may end
/// early. The first row starts on a multiple of 16 bytes, which may lie before the tensor. A block
/// is a warp's packs of columns, by so many rows side by side as it has warps, and moves down its
/// band of rows.
struct Rows {
  int64_t inner, channels, columns, numel;
  int64_t band;
  uint32_t tiles;
  int misaligned;
};

constexpr int kMostWarps = kThreads / kWarp;
/// Batches whose sums a thread adds up before it moves them into double: 16 rows at most, whose
/// rounding errors, were they all of one sign, come to 5e-7 of the sum.
constexpr int kBatchesBeforeDouble = 8;

/// What one thread of the rows' kernels works on: a pack of columns, in a band.
template <class S>
struct Columns {
  static constexpr int kLanes = kLanesOf<S>;
  int64_t column, row, end;  // of the pack's first lane; rows of the band

  __device__ __forceinline__ explicit Columns(const Rows& rows) {
    column = (int64_t{blockIdx.x % rows.tiles} * kWarp + threadIdx.x) * kLanes;
    const int64_t begin = blockIdx.x / rows.tiles * rows.band;
    row = begin + threadIdx.y;
    end = begin + rows.band;
  }
  /// From a row on down.
  template <int kPacks>
  __device__ __forceinline__ Batch<S, kPacks, int64_t> batch(const Rows& rows, int64_t from) const {
    const int64_t first = from * rows.columns + column - rows.misaligned;
    const int64_t below = end * rows.columns - rows.misaligned;
    const int64_t last = column >= rows.columns ? first : below < rows.numel ? below : rows.numel;
    return {first, blockDim.y * rows.columns, -first, last - first};
  }
  /// Of each lane's channel.
  template <class F>
  __device__ __forceinline__ Parameter<F, S> parameter(const Operands& operands,
                                                       const Rows& rows) const {
    Real<S> values[F::kNumbers][kLanes];
    const int64_t first = (column - rows.misaligned + rows.columns) % rows.columns;
    int64_t channel = first / rows.inner % rows.channels, beside = first % rows.inner;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
#pragma unroll
      for (int k = 0; k < F::kNumbers; ++k) values[k][lane] = number_at<S>(operands, k, channel);
      if (++beside == rows.inner) {
        beside = 0;
        if (++channel == rows.channels) channel = 0;
      }
    }
    Numbers<S> numbers[F::kNumbers];
#pragma unroll
    for (int k = 0; k < F::kNumbers; ++k) numbers[k] = Numbers<S>::load(values[k]);
    return Parameter<F, S>(numbers);
  }
};

template <class F, class S>
__global__ void __launch_bounds__(kThreads, kResidentOfRows)
    forward_rows(Operands operands, S* output, Rows rows) {
  constexpr int kPacks = kForwardPacks<F>;
  const Columns<S> columns(rows);
  const auto parameter = columns.template parameter<F>(operands, rows);
  for (int64_t row = columns.row; row < columns.end; row += kPacks * blockDim.y) {
    forward_batch<F, S>(columns.template batch<kPacks>(rows, row), operands, parameter, output);
  }
}

/// A slot for each column of each band.
template <class F, class S>
__global__ void __launch_bounds__(kThreads, kResidentOfRows)
    backward_rows(Operands operands, Gradients grads, Sums sums, Rows rows) {
  constexpr int kPacks = kBackwardPacks<F>, kLanes = kLanesOf<S>;
  const Columns<S> columns(rows);
  const auto parameter = columns.template parameter<F>(operands, rows);
  __shared__ double of_warps[kMostWarps][kWarp * kLanes];  // where registers are scarce
  double* totals = &of_warps[threadIdx.y][threadIdx.x * kLanes];
#pragma unroll
  for (int k = 0; k < kLanes; ++k) totals[k] = 0;
  for (int64_t row = columns.row; row < columns.end;) {
    Numbers<S> sum(0);
    for (int n = 0; n < kBatchesBeforeDouble && row < columns.end; ++n) {
      sum = backward_batch<F, S>(columns.template batch<kPacks>(rows, row), operands, parameter,
                                 grads, sum);
      row += kPacks * blockDim.y;
    }
    Real<S> lanes[kLanes];
    sum.store(lanes);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) totals[k] += lanes[k];
  }
  if (!sums.wanted()) return;

  __syncthreads();
  const int64_t band = blockIdx.x / rows.tiles, tile = blockIdx.x % rows.tiles;
  for (int k = threadIdx.y * kWarp + threadIdx.x; k < kWarp * kLanes; k += kWarp * blockDim.y) {
    const int64_t column = tile * kWarp * kLanes + k;
    if (column >= rows.columns) break;
    double total = 0;
    for (unsigned warp = 0; warp < blockDim.y; ++warp) total += of_warps[warp][k];
    const int64_t slot = (column - rows.misaligned + rows.columns) % rows.columns;
    sums.set<S>(band * rows.columns + slot, total);
  }
}

/// Makes of (3, knots) places, values and slopes what TableOf takes. One block.
template <class T, class Real>
__global__ void __launch_bounds__(kThreads)
    prepare_table(const T* table, int32_t knots, Real* prepared) {
  const int32_t intervals = knots - 1;
  const double lower = load(table), upper = load(table + intervals);
  const double width = (upper - lower) / intervals;
  if (threadIdx.x == 0) {
    store(prepared + kLower, static_cast<Real>(lower));
    store(prepared + kUpper, static_cast<Real>(upper));
    store(prepared + kPerUnit, static_cast<Real>(1 / width));
    store(prepared + kIntervals, static_cast<Real>(intervals));
  }
  for (int32_t k = threadIdx.x; k < intervals; k += blockDim.x) {
    const T* values = table + knots + k;
    const T* slopes = values + knots;
    Real c[4];
    set_coefficients(c, load(values), load(values + 1), load(slopes) * width,
                     load(slopes + 1) * width);
#pragma unroll
    for (int j = 0; j < 4; ++j) store(prepared + kTableHeader + 4 * k + j, c[j]);
  }
}

/// Adds up the slots of each epsilon; they are (outer, channels, inner). A block for each channel.
template <class S>
__global__ void __launch_bounds__(kMostThreads)
    fold(const double* slots, Layout layout, EpsilonGradient gradient) {
  const int64_t channel = blockIdx.x;
  double total = 0;
#pragma unroll 4
  for (int64_t k = threadIdx.x; k < layout.outer * layout.inner; k += blockDim.x) {
    const int64_t outer = k / layout.inner;
    total += load(slots + (outer * layout.channels + channel) * layout.inner + k % layout.inner);
  }
  total = block_sum(total);
  if (threadIdx.x == 0) gradient.set<S>(channel, total);
}

}  // namespace
}  // namespace crrelu::cuda
