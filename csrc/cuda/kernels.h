// The interface between the operators (crrelu_cuda.cpp) and the kernels: raw pointers on a device,
// no torch. Launches are asynchronous; the caller chooses the device and looks for launch errors.
#pragma once

#include "../cpu/kernels.h"
#include "../histogram.h"
#include "../layout.h"

struct CUstream_st;  // what a cudaStream_t points to

namespace crrelu::cuda {

/// What a thread loads and stores at a time, where it can.
constexpr int kPackBytes = 16;
/// Of a call on tensors with gaps between rows.
constexpr int64_t kMostPacks = int64_t{1} << 31;

/// Where to run: epsilon's gradient has the same bits for the same shape, alignments modulo 16 and
/// number of multiprocessors.
struct Machine {
  int multiprocessors;
  CUstream_st* stream;
};

/// A tensor that is read: its first element, and the elements between its rows.
struct Source {
  const void* first;
  int64_t gap;
};

/// What both passes read. Tensors lie alike and are aligned to their elements; there is at least
/// one element. They have no gaps; or, where one parameter serves all elements, some may have gaps
/// between rows, and the layout is (rows, 1, elements of a row): then the first element is on a
/// multiple of kPackBytes, as is that of each row, and there are kMostPacks at the most. The
/// numbers that the activation's parameter is made of are layout.channels each: epsilon, of float
/// or of the stored type; the others, of the arithmetic type. Or the first is a prepared table.
struct Operands {
  Source inputs[kMostInputs];
  const void* numbers[kMostNumbers];
  bool epsilon_is_float;
  Layout layout;
};

struct Kernels {
  /// output[i] = f(inputs[0][i], ...); output may be an input.
  void (*forward)(const Machine& machine, const Operands& operands, void* output);

  /// grad_inputs[k][i] = grad_output[i] df/dinputs[k], and grad_epsilon[c], of epsilon's type, the
  /// sum of grad_output[i] df/depsilon over the elements of channel c. What is null is not wanted;
  /// something must be. `slots` has room for so many as slots() says.
  void (*backward)(const Machine& machine, const Operands& operands, Source grad_output,
                   void* const* grad_inputs, void* grad_epsilon, double* slots);

  /// Partial sums that the gradient of epsilon is made of; 0 where one block does without.
  int64_t (*slots)(const Layout& layout, int multiprocessors);
};

const Kernels& kernels(Activation activation, Storage storage);

/// Makes of a table, (3, knots) places, values and slopes, of float or double, what the tabulated
/// activation's kernels take for this stored type: TableHeader and 4 · (knots - 1) numbers of its
/// arithmetic type, on a multiple of 16 bytes.
void prepare_table(const Machine& machine, const void* table, bool table_is_double, int32_t knots,
                   Storage storage, void* prepared);

/// Adds to each channel's counts, (channels, kCounts), those of its samples; `place` is (2,
/// channels), location and scale.
void count(const Machine& machine, Storage storage, const void* input, const Layout& layout,
           const float* place, const Samples& samples, int64_t* counts);

}  // namespace crrelu::cuda
