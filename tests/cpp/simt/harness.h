// How a test drives the machine of simt.h; a C interface, for Python's ctypes.
#pragma once

#include <cstdint>

extern "C" {

struct Settings {
  uint64_t seed;
  /// exp2_approx misses the correctly rounded result by so many ulp at the most.
  int32_t exp2_error;
  int32_t multiprocessors;
  /// Of a larger grid so many blocks are run, the first and the last among them.
  uint32_t most_blocks;
};

struct Counts {
  int64_t loaded, stored;  // bytes
  int64_t launches, blocks;
  int64_t exponentials;  // of the kind that exp2_approx is
};

/// The tensors as csrc/cuda/kernels.h wants them; `sizes` is outer, channels, inner; `gaps`, in
/// elements, those between rows of the inputs.
struct Call {
  int32_t activation, storage;
  const void* inputs[2];
  int64_t gaps[2];
  const void* numbers[3];  // epsilon, and for the placed activation location and scale; or a table
  int32_t epsilon_is_float;
  int64_t sizes[3];
  int64_t intervals;  // of the table, or 0
};

/// What went wrong, or null.
const char* simt_forward(const Settings* settings, const Call* call, void* output, Counts* counts);
const char* simt_prepare_table(const Settings* settings, const void* table, int32_t is_double,
                               int32_t knots, int32_t storage, void* prepared, int64_t size,
                               Counts* counts);
/// Adds to `bins`, of each channel, what is counted of the first input.
const char* simt_count(const Settings* settings, const Call* call, int64_t samples,
                       const float* place, int64_t* bins, Counts* counts);
const char* simt_backward(const Settings* settings, const Call* call, const void* grad_output,
                          int64_t grad_gap, void* const* grad_inputs, void* grad_epsilon,
                          Counts* counts);
}

namespace simt {

void begin(const Settings& settings);
/// The kernels may read here, and write if so.
void allow(const void* p, int64_t size, bool writable);
const char* end(Counts* counts);

}  // namespace simt
