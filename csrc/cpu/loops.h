// Load, compute, store, and sum. Written once, over a functor F (the formula), a vocabulary V and a
// stored type S. Included inside an instruction set's target region.
//
// The main loop computes two vectors in lockstep, which fills the latency of the long chain behind
// exp; what is left takes masked loads and stores and the same arithmetic, so no result depends on
// an element's position or alignment.
#pragma once

#include "kernels.h"
#include "pair.h"

namespace crrelu {
namespace {

template <class F, class V, Precision P, class S>
class Loops {
 public:
  static constexpr Kernels kernels() { return {forward, forward_rows, backward, backward_rows}; }

 private:
  using Real = typename Arithmetic<S>::type;
  using V2 = Pair<V>;
  template <class W>
  using Parameter = typename F::template Parameter<W>;

  /// Elements between two moves of the partial sums into double: 32 additions to each of AVX-512's
  /// float lanes.
  static constexpr int64_t kBlock = 1024;
  /// Rows whose sums are added up before they are moved into double.
  static constexpr int64_t kRows = 4;

  static int tail(int64_t left) { return left < V::kLanes ? static_cast<int>(left) : V::kLanes; }
  static bool can_stream(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

  static void forward(const void* input, const void* epsilon, void* output, int64_t numel,
                      bool stream) {
    const auto* x = static_cast<const S*>(input);
    auto* y = static_cast<S*>(output);
    const Real parameter = *static_cast<const Real*>(epsilon);
    if (stream && can_stream(y)) {
      forward_run<true>(x, parameter, y, numel);
      V::stream_fence();
    } else {
      forward_run<false>(x, parameter, y, numel);
    }
  }

  template <bool kStream>
  static void forward_run(const S* x, Real epsilon, S* y, int64_t numel) {
    const Parameter<V2> parameter2{V2(epsilon)};
    const Parameter<V> parameter{V(epsilon)};
    int64_t i = 0;
    for (; i + V2::kLanes <= numel; i += V2::kLanes) {
      const V2 value = F::template value<P>(V2::load(x + i), parameter2);
      if constexpr (kStream) {
        value.stream(y + i);
      } else {
        value.store(y + i);
      }
    }
    for (; i < numel; i += V::kLanes) {
      const int count = tail(numel - i);
      F::template value<P>(V::load(x + i, count), parameter).store(y + i, count);
    }
  }

  static void forward_rows(const void* input, const void* epsilon_, void* output, int64_t rows,
                           int64_t columns, int64_t stride) {
    const auto* x = static_cast<const S*>(input);
    auto* y = static_cast<S*>(output);
    const auto* epsilon = static_cast<const Real*>(epsilon_);
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t begin = row * stride, end = (rows - row < kRows ? rows : row + kRows) * stride;
      int64_t i = 0;
      for (; i + V2::kLanes <= columns; i += V2::kLanes) {
        const Parameter<V2> parameter(V2::load(epsilon + i));
        for (int64_t j = begin + i; j < end; j += stride)
          F::template value<P>(V2::load(x + j), parameter).store(y + j);
      }
      for (; i < columns; i += V::kLanes) {
        const int count = tail(columns - i);
        const Parameter<V> parameter(V::load(epsilon + i, count));
        for (int64_t j = begin + i; j < end; j += stride) {
          F::template value<P>(V::load(x + j, count), parameter).store(y + j, count);
        }
      }
    }
  }

  static void backward(const void* grad_output, const void* input, const void* epsilon,
                       void* grad_input, double* sum, int64_t numel, bool stream) {
    const auto* g = static_cast<const S*>(grad_output);
    const auto* x = static_cast<const S*>(input);
    auto* gx = static_cast<S*>(grad_input);
    const Real parameter = *static_cast<const Real*>(epsilon);
    if (!gx) {
      *sum = backward_run<false, true, false>(g, x, parameter, gx, numel);
    } else if (stream && can_stream(gx)) {
      if (sum) {
        *sum = backward_run<true, true, true>(g, x, parameter, gx, numel);
      } else {
        backward_run<true, false, true>(g, x, parameter, gx, numel);
      }
      V::stream_fence();
    } else if (sum) {
      *sum = backward_run<true, true, false>(g, x, parameter, gx, numel);
    } else {
      backward_run<true, false, false>(g, x, parameter, gx, numel);
    }
  }

  template <bool kInput, bool kParameter, bool kStream>
  static double backward_run(const S* g, const S* x, Real epsilon, S* gx, int64_t numel) {
    const Parameter<V2> parameter2{V2(epsilon)};
    const Parameter<V> parameter{V(epsilon)};
    double lanes[V2::kLanes] = {};
    for (int64_t i = 0; i < numel;) {
      const int64_t end = numel - i < kBlock ? numel : i + kBlock;
      V2 sum2(0);
      V sum(0);
      for (; i + V2::kLanes <= end; i += V2::kLanes) {
        const V2 grad = V2::load(g + i);
        const auto slopes = F::template slopes<P>(V2::load(x + i), parameter2);
        if constexpr (kStream) {
          (grad * slopes.input).stream(gx + i);
        } else if constexpr (kInput) {
          (grad * slopes.input).store(gx + i);
        }
        sum2 = fma(grad, slopes.parameter, sum2);
      }
      for (; i < end;
           i += V::kLanes) {  // the last block's tail: absent lanes read zeros and add zeros
        const int count = tail(end - i);
        const V grad = V::load(g + i, count);
        const auto slopes = F::template slopes<P>(V::load(x + i, count), parameter);
        if constexpr (kInput) (grad * slopes.input).store(gx + i, count);
        sum = fma(grad, slopes.parameter, sum);
      }
      if constexpr (kParameter) {
        accumulate(sum2, lanes, V2::kLanes);
        accumulate(sum, lanes, V::kLanes);
      }
    }
    double total = 0;
    for (const double lane : lanes) total += lane;
    return total;
  }

  static void backward_rows(const void* grad_output, const void* input, const void* epsilon_,
                            void* grad_input, double* sums, int64_t rows, int64_t columns,
                            int64_t stride) {
    const auto* g = static_cast<const S*>(grad_output);
    const auto* x = static_cast<const S*>(input);
    auto* gx = static_cast<S*>(grad_input);
    const auto* epsilon = static_cast<const Real*>(epsilon_);
    if (!gx) {
      backward_matrix<false, true>(g, x, epsilon, gx, sums, rows, columns, stride);
    } else if (sums) {
      backward_matrix<true, true>(g, x, epsilon, gx, sums, rows, columns, stride);
    } else {
      backward_matrix<true, false>(g, x, epsilon, gx, sums, rows, columns, stride);
    }
  }

  template <bool kInput, bool kParameter>
  static void backward_matrix(const S* g, const S* x, const Real* epsilon, S* gx, double* sums,
                              int64_t rows, int64_t columns, int64_t stride) {
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t begin = row * stride, end = (rows - row < kRows ? rows : row + kRows) * stride;
      int64_t i = 0;
      for (; i + V2::kLanes <= columns; i += V2::kLanes) {
        const Parameter<V2> parameter(V2::load(epsilon + i));
        V2 sum(0);
        for (int64_t j = begin + i; j < end; j += stride) {
          const V2 grad = V2::load(g + j);
          const auto slopes = F::template slopes<P>(V2::load(x + j), parameter);
          if constexpr (kInput) (grad * slopes.input).store(gx + j);
          sum = fma(grad, slopes.parameter, sum);
        }
        if constexpr (kParameter) accumulate(sum, sums + i, V2::kLanes);
      }
      for (; i < columns; i += V::kLanes) {
        const int count = tail(columns - i);
        const Parameter<V> parameter(V::load(epsilon + i, count));
        V sum(0);
        for (int64_t j = begin + i; j < end; j += stride) {
          const V grad = V::load(g + j, count);
          const auto slopes = F::template slopes<P>(V::load(x + j, count), parameter);
          if constexpr (kInput) (grad * slopes.input).store(gx + j, count);
          sum = fma(grad, slopes.parameter, sum);
        }
        if constexpr (kParameter) accumulate(sum, sums + i, count);
      }
    }
  }

  template <class W>
  static CRRELU_INLINE void accumulate(W sum, double* sums, int count) {
    typename W::real lanes[W::kLanes];
    sum.store(lanes);
    for (int k = 0; k < count; ++k) sums[k] += lanes[k];
  }
};

/// The tables of one instruction set: its float and double vocabularies.
template <class F, class V32, class V64>
struct Tables {
  // Where float is computed in double, float itself shows only half of the computation's bits.
  static constexpr Precision kFloat =
      sizeof(typename V32::real) == 4 ? Precision::kFull : Precision::kHalf;
  static constexpr Kernels kernels[kStorages] = {
      Loops<F, V32, kFloat, float>::kernels(),
      Loops<F, V64, Precision::kFull, double>::kernels(),
      Loops<F, V32, Precision::kHalf, BFloat16>::kernels(),
      Loops<F, V32, Precision::kHalf, Half>::kernels(),
  };
};

}  // namespace
}  // namespace crrelu
