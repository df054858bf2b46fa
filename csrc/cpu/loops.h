// Load, compute, store, and sum. Written once, over a functor F (the formula), a vocabulary V and a
// stored type S. Included inside an instruction set's target region.
//
// The main loop computes several vectors in lockstep, which fills the latency of the long chain
// behind exp; what is left takes masked loads and stores and the same arithmetic, so no result
// depends on an element's position or alignment.
#pragma once

#include <type_traits>

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
  // Side by side as many vectors as the registers hold constants and intermediate values for.
  using Wide = Pair<Pair<V>>;
  using WideSlopes = typename std::conditional<P == Precision::kFull, Pair<V>, Wide>::type;
  template <class W>
  using Memory = AnyOrder<typename W::Half, S>;
  template <class W>
  using Parameter = typename F::template Parameter<W>;

  /// Elements between two moves of the partial sums into double: 32 additions to a lane, whose
  /// rounding errors, were they all of one sign, come to 1e-6 of the sum.
  static constexpr int64_t kBlock = 32 * WideSlopes::kLanes;
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
    const Parameter<Wide> wide_parameter{Wide(epsilon)};
    const Parameter<V> parameter{V(epsilon)};
    int64_t i = 0;
    for (; i + Wide::kLanes <= numel; i += Wide::kLanes) {
      const Wide value = F::template value<P>(Memory<Wide>::load(x + i), wide_parameter);
      if constexpr (kStream) {
        Memory<Wide>::stream(value, y + i);
      } else {
        Memory<Wide>::store(value, y + i);
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
      for (; i + Wide::kLanes <= columns; i += Wide::kLanes) {
        const Parameter<Wide> parameter(Wide::load(epsilon + i));
        for (int64_t j = begin + i; j < end; j += stride)
          F::template value<P>(Wide::load(x + j), parameter).store(y + j);
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
    const Parameter<WideSlopes> wide_parameter{WideSlopes(epsilon)};
    const Parameter<V> parameter{V(epsilon)};
    double lanes[WideSlopes::kLanes] = {};
    for (int64_t i = 0; i < numel;) {
      const int64_t end = numel - i < kBlock ? numel : i + kBlock;
      WideSlopes wide_sum(0);
      V sum(0);
      for (; i + WideSlopes::kLanes <= end; i += WideSlopes::kLanes) {
        const WideSlopes grad = Memory<WideSlopes>::load(g + i);
        const auto slopes = F::template slopes<P>(Memory<WideSlopes>::load(x + i), wide_parameter);
        if constexpr (kStream) {
          Memory<WideSlopes>::stream(grad * slopes.input, gx + i);
        } else if constexpr (kInput) {
          Memory<WideSlopes>::store(grad * slopes.input, gx + i);
        }
        wide_sum = fma(grad, slopes.parameter, wide_sum);
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
        accumulate(wide_sum, lanes, WideSlopes::kLanes);
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
      for (; i + WideSlopes::kLanes <= columns; i += WideSlopes::kLanes) {
        const Parameter<WideSlopes> parameter(WideSlopes::load(epsilon + i));
        WideSlopes sum(0);
        for (int64_t j = begin + i; j < end; j += stride) {
          const WideSlopes grad = WideSlopes::load(g + j);
          const auto slopes = F::template slopes<P>(WideSlopes::load(x + j), parameter);
          if constexpr (kInput) (grad * slopes.input).store(gx + j);
          sum = fma(grad, slopes.parameter, sum);
        }
        if constexpr (kParameter) accumulate(sum, sums + i, WideSlopes::kLanes);
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
  // Where float is computed in double, it shows but half of the computation's bits.
  static constexpr bool kDouble = sizeof(typename V32::real) == sizeof(double);
  static constexpr Precision kFloat = kDouble ? Precision::kHalf : Precision::kFull;
  static constexpr Kernels kernels[kStorages] = {
      Loops<F, V32, kFloat, float>::kernels(),
      Loops<F, V64, Precision::kFull, double>::kernels(),
      Loops<F, V32, Precision::kHalf, BFloat16>::kernels(),
      // float16 has the same fixed spacing of 2^-24 near 0 for every size of the terms: where they
      // cancel, it shows all of a float's bits.
      Loops<F, V32, kFloat, Half>::kernels(),
  };
};

}  // namespace
}  // namespace crrelu
