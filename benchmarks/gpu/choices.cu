// The kernels of CRReLU with one epsilon behind C functions, for choices.py; and a backward pass of
// one launch, whose last block adds up the slots, to measure the shipped one's two launches
// against.
#include "cuda/plan.cuh"

namespace crrelu::cuda {
namespace {

/// backward_runs and fold. `done` counts the blocks that are; it is 0 before and after.
template <class F, class S>
__global__ void __launch_bounds__(kThreads, kResidentOf<F>)
    backward_runs_and_fold(Operands operands, Gradients grads, Sums sums, Runs runs,
                           unsigned* done) {
  const double of_block = block_sum(sum_of_tiles<F, S, false>(operands, grads, runs));
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    store(sums.slots + blockIdx.x, of_block);
    __threadfence();
    is_last = atomicAdd(done, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  double total = 0;
  for (unsigned k = threadIdx.x; k < gridDim.x; k += kThreads) total += __ldcg(sums.slots + k);
  total = block_sum(total);
  if (threadIdx.x != 0) return;
  sums.gradient.set<S>(0, total);
  *done = 0;
}

Operands operands_of(const void* input, const float* epsilon, int64_t numel) {
  return {{{input, 0}}, {epsilon}, true, {1, 1, numel}};
}

template <class S>
void backward(const Machine& machine, const Operands& operands, Source grad_output,
              void* grad_input, float* grad_epsilon, double* slots, unsigned* done) {
  if (!done) {
    void* const grad_inputs[] = {grad_input, nullptr};
    return Launches<CRReLU, S>::backward(machine, operands, grad_output, grad_inputs, grad_epsilon,
                                         slots);
  }
  const auto runs = plan_runs<CRReLU, S, kBackwardPacks<CRReLU>>(
      operands.layout, misaligned_elements<S>(grad_input), machine.multiprocessors);
  launch(backward_runs_and_fold<CRReLU, S>, dim3(runs.parts), dim3(kThreads), machine.stream,
         operands, Gradients{grad_output, {grad_input}}, Sums{slots, {grad_epsilon, true}}, runs,
         done);
}

}  // namespace
}  // namespace crrelu::cuda

using namespace crrelu::cuda;
using crrelu::BFloat16;

// For float32, or else bfloat16.
extern "C" {

int64_t choices_slots(int is_float, int64_t numel, int multiprocessors) {
  const auto slots =
      is_float ? Launches<crrelu::CRReLU, float>::slots : Launches<crrelu::CRReLU, BFloat16>::slots;
  return slots({1, 1, numel}, multiprocessors);
}

/// Returns CUDA's error, as the next one does.
int choices_forward(int is_float, int64_t numel, int multiprocessors, CUstream_st* stream,
                    const void* input, const float* epsilon, void* output) {
  const auto forward = is_float ? Launches<crrelu::CRReLU, float>::forward
                                : Launches<crrelu::CRReLU, BFloat16>::forward;
  forward({multiprocessors, stream}, operands_of(input, epsilon, numel), output);
  return cudaGetLastError();
}

/// In one launch where there is a counter, of one number that is 0.
int choices_backward(int is_float, int64_t numel, int multiprocessors, CUstream_st* stream,
                     const void* grad_output, const void* input, const float* epsilon,
                     void* grad_input, float* grad_epsilon, double* slots, unsigned* done) {
  const auto function = is_float ? backward<float> : backward<BFloat16>;
  function({multiprocessors, stream}, operands_of(input, epsilon, numel), {grad_output, 0},
           grad_input, grad_epsilon, slots, done);
  return cudaGetLastError();
}
}
