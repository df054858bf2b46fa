// Load, compute, store, and sum. Written once, over an activation F (crrelu_math.h), a vocabulary V
// and a stored type S. Included inside an instruction set's target region.
//
// The main loop computes several vectors in lockstep, which fills the latency of the long chain
// behind exp, or begins the next before it finishes these; what is left takes masked loads and
// stores and the same arithmetic, so no result depends on an element's position or alignment.
#pragma once

#include <type_traits>

#include "../tabulated.h"
#include "kernels.h"
#include "pair.h"

namespace crrelu {
namespace {

template <class F, class V, Precision P, class S>
class Loops {
 public:
  static constexpr Kernels kernels() {
    if constexpr (F::kNumbers > 0) {
      return {forward, forward_rows, backward, backward_rows};
    } else {
      return {forward, nullptr, backward, nullptr};
    }
  }

 private:
  using Real = typename Arithmetic<S>::type;
  static constexpr int kInputs = F::kInputs;
  // Side by side as many vectors as the registers hold constants and intermediate values for.
  using Wide = Pair<Pair<V>>;
  using WideGradients =
      typename std::conditional<P == Precision::kFull && kInputs == 1, Pair<V>, Wide>::type;
  template <class W>
  using Parameter = typename F::template Parameter<W, Real>;

  /// Of the columns from the i-th on.
  template <class W, class... Count>
  static CRRELU_INLINE Parameter<W> of_columns(const void* const* numbers, int64_t i,
                                               Count... count) {
    W loaded[F::kNumbers];
    for (int k = 0; k < F::kNumbers; ++k)
      loaded[k] = W::load(static_cast<const Real*>(numbers[k]) + i, count...);
    return Parameter<W>(loaded);
  }

  // The parameter of all elements of a run, for vectors of any width.
  struct AsItIs {
    const void* const* numbers;
    template <class W>
    CRRELU_INLINE Parameter<W> of() const {
      if constexpr (F::kNumbers == 0) {
        return Parameter<W>(static_cast<const Real*>(numbers[0]));
      } else {
        W broadcast[F::kNumbers];
        for (int k = 0; k < F::kNumbers; ++k)
          broadcast[k] = W(*static_cast<const Real*>(numbers[k]));
        return Parameter<W>(broadcast);
      }
    }
    double unscaled(double sum) const { return sum; }
  };
  // That of all elements of the tensor, with epsilon multiplied into the powers (SharedEpsilon).
  struct InPowers {
    typename V::real numbers[F::kNumbers];
    explicit InPowers(const void* const* numbers_) {
      for (int k = 0; k < F::kNumbers; ++k) numbers[k] = *static_cast<const Real*>(numbers_[k]);
    }
    bool possible() const { return F::template Shared<V>::takes(numbers); }
    template <class W>
    CRRELU_INLINE auto of() const {
      return typename F::template Shared<W>(numbers);
    }
    double unscaled(double sum) const { return sum / SharedEpsilon<V>::significand(numbers[0]); }
  };

  /// Additions to a partial sum before it is moved into double: their rounding errors, were they
  /// all of one sign, come to 1e-6 of the sum of like terms, at the worst to 2e-6.
  static constexpr int64_t kAdditions = 32;
  static constexpr int64_t kBlock = kAdditions * WideGradients::kLanes;

  static int tail(int64_t left) { return left < V::kLanes ? static_cast<int>(left) : V::kLanes; }

  // How vectors are read and written: in order; where the order of the lanes is free, as it is
  // cheapest, perhaps past the caches; or so many elements as are left.
  struct InOrder {
    template <class W>
    static CRRELU_INLINE W load(const S* p) {
      return W::load(p);
    }
    template <class W>
    static CRRELU_INLINE void store(W value, S* p) {
      value.store(p);
    }
  };
  struct Cached {
    template <class W>
    static CRRELU_INLINE W load(const S* p) {
      return AnyOrder<typename W::Half, S>::load(p);
    }
    template <class W>
    static CRRELU_INLINE void store(W value, S* p) {
      AnyOrder<typename W::Half, S>::store(value, p);
    }
  };
  struct Streamed : Cached {
    template <class W>
    static CRRELU_INLINE void store(W value, S* p) {
      AnyOrder<typename W::Half, S>::stream(value, p);
    }
  };
  struct First {
    int count;
    template <class W>
    CRRELU_INLINE W load(const S* p) const {
      return W::load(p, count);
    }
    template <class W>
    CRRELU_INLINE void store(W value, S* p) const {
      value.store(p, count);
    }
  };

  /// The tensors of a call.
  struct Sources {
    const S* p[kInputs];
    explicit Sources(const void* const* inputs) {
      for (int k = 0; k < kInputs; ++k) p[k] = static_cast<const S*>(inputs[k]);
    }
  };
  struct Targets {
    S* p[kInputs] = {};
    bool any = false;
    bool can_stream = true;
    explicit Targets(void* const* grads) {
      for (int k = 0; k < kInputs; ++k) {
        p[k] = static_cast<S*>(grads[k]);
        any = any || p[k];
        can_stream = can_stream && Loops::can_stream(p[k]);
      }
    }
  };
  static bool can_stream(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

  template <class W>
  struct Inputs {
    W x[kInputs];
    template <class Access>
    CRRELU_INLINE Inputs(const Sources& sources, int64_t i, Access access) {
      for (int k = 0; k < kInputs; ++k) x[k] = access.template load<W>(sources.p[k] + i);
    }
  };

  template <class W, class AnyParameter, class Access>
  static CRRELU_INLINE void forward_at(int64_t i, const Sources& inputs,
                                       const AnyParameter& parameter, S* y, Access access) {
    const Inputs<W> in(inputs, i, access);
    access.store(F::template value<P>(in.x, parameter), y + i);
  }

  /// Stores the gradients of the inputs, returns the terms of the parameter's gradient.
  template <bool kWantInputs, class W, class AnyParameter, class Access>
  static CRRELU_INLINE Product<W> backward_at(int64_t i, const S* g, const Sources& inputs,
                                              const AnyParameter& parameter, const Targets& grads,
                                              Access access) {
    const W grad_output = access.template load<W>(g + i);
    const Inputs<W> in(inputs, i, access);
    const auto gradients = F::template gradients<P>(grad_output, in.x, parameter);
    if constexpr (kWantInputs) {
      for (int k = 0; k < kInputs; ++k) {
        if (kInputs == 1 || grads.p[k]) access.store(gradients.inputs[k], grads.p[k] + i);
      }
    }
    return gradients.parameter;
  }

  static void forward(const void* const* inputs, const void* const* numbers, void* output,
                      int64_t numel, bool stream, bool only) {
    auto* y = static_cast<S*>(output);
    if constexpr (F::kNumbers > 0) {
      const InPowers given(numbers);
      if (only && given.possible()) return forward_with(given, inputs, y, numel, stream);
    }
    forward_with(AsItIs{numbers}, inputs, y, numel, stream);
  }

  template <class Given>
  static void forward_with(Given given, const void* const* inputs, S* y, int64_t numel,
                           bool stream) {
    if (stream && can_stream(y)) {
      forward_run(Sources(inputs), given, y, numel, Streamed());
      V::stream_fence();
    } else {
      forward_run(Sources(inputs), given, y, numel, Cached());
    }
  }

  /// Asks for the input a page ahead, where the processor's own prefetching does not reach: past
  /// the caches that takes a tenth off the time. With more tensors to read it costs some.
  static CRRELU_INLINE void prefetch(const Sources& inputs, int64_t i) {
    const auto* ahead = reinterpret_cast<const char*>(inputs.p[0] + i) + 4096;
    for (int line = 0; line < Wide::kLanes * static_cast<int>(sizeof(S)); line += 64)
      __builtin_prefetch(ahead + line);
  }

  template <class Given, class Access>
  static void forward_run(const Sources inputs, Given given, S* y, int64_t numel, Access access) {
    const auto parameter = given.template of<V>();
    int64_t i = 0;
    if constexpr (F::kBegins && V::kManyRegisters && std::is_same_v<Access, Cached>) {
      i = forward_pipelined<Pair<V>>(inputs, given.template of<Pair<V>>(), y, numel, access);
    } else {
      const auto wide_parameter = given.template of<Wide>();
      for (; i + Wide::kLanes <= numel; i += Wide::kLanes) {
        if constexpr (std::is_same_v<Access, Streamed> && kInputs == 1) prefetch(inputs, i);
        forward_at<Wide>(i, inputs, wide_parameter, y, access);
      }
    }
    for (; i < numel; i += V::kLanes) {
      forward_at<V>(i, inputs, parameter, y, First{tail(numel - i)});
    }
  }

  /// Whole vectors, of which the next are begun before these are finished: that fills the time for
  /// which these wait. Returns how many elements it did.
  template <class W, class AnyParameter, class Access>
  static CRRELU_INLINE int64_t forward_pipelined(const Sources& inputs,
                                                 const AnyParameter& parameter, S* y, int64_t numel,
                                                 Access access) {
    if (numel < W::kLanes) return 0;
    int64_t i = 0;
    auto begun = F::template begin<P>(Inputs<W>(inputs, 0, access).x);
    for (; i + 2 * W::kLanes <= numel; i += W::kLanes) {
      const auto next = F::template begin<P>(Inputs<W>(inputs, i + W::kLanes, access).x);
      access.store(F::value(begun, parameter), y + i);
      begun = next;
    }
    access.store(F::value(begun, parameter), y + i);
    return i + W::kLanes;
  }

  /// Some columns, and the parameters of those that fill wide vectors: made once for all rows, and
  /// few enough to stay in the nearest caches.
  template <class W>
  struct Tile {
    int64_t begin, wide_end, end;
    Parameter<W> parameters[kTileColumns / W::kLanes];

    CRRELU_INLINE Tile(const void* const* numbers, int64_t begin, int64_t columns)
        : begin(begin), end(columns - begin < kTileColumns ? columns : begin + kTileColumns) {
      wide_end = end - (end - begin) % W::kLanes;
      for (int64_t i = begin; i < wide_end; i += W::kLanes)
        parameters[(i - begin) / W::kLanes] = of_columns<W>(numbers, i);
    }
    CRRELU_INLINE const Parameter<W>& at(int64_t i) const {
      return parameters[(i - begin) / W::kLanes];
    }
  };

  static void forward_rows(const void* const* inputs_, const void* const* numbers, void* output,
                           int64_t rows, int64_t columns, int64_t stride) {
    const Sources inputs(inputs_);
    auto* y = static_cast<S*>(output);
    for (int64_t begin = 0; begin < columns; begin += kTileColumns) {
      const Tile<Wide> tile(numbers, begin, columns);
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t at = row * stride;
        int64_t i = begin;
        for (; i < tile.wide_end; i += Wide::kLanes)
          forward_at<Wide>(at + i, inputs, tile.at(i), y, InOrder());
        for (; i < tile.end; i += V::kLanes) {
          const First access{tail(tile.end - i)};
          forward_at<V>(at + i, inputs, of_columns<V>(numbers, i, access.count), y, access);
        }
      }
    }
  }

  static void backward(const void* grad_output, const void* const* inputs,
                       const void* const* numbers, void* const* grad_inputs, double* sum,
                       int64_t numel, bool stream, bool only) {
    const auto* g = static_cast<const S*>(grad_output);
    const Targets grads(grad_inputs);
    if constexpr (F::kNumbers > 0) {
      const InPowers given(numbers);
      if (only && given.possible())
        return backward_with(given, g, Sources(inputs), grads, sum, numel, stream);
    }
    backward_with(AsItIs{numbers}, g, Sources(inputs), grads, sum, numel, stream);
  }

  template <class Given>
  static void backward_with(Given given, const S* g, const Sources inputs, const Targets grads,
                            double* sum, int64_t numel, bool stream) {
    if (!grads.any) {
      *sum = backward_run<false, true>(given, g, inputs, grads, numel, Cached());
    } else if (stream && grads.can_stream) {
      if (sum) {
        *sum = backward_run<true, true>(given, g, inputs, grads, numel, Streamed());
      } else {
        backward_run<true, false>(given, g, inputs, grads, numel, Streamed());
      }
      V::stream_fence();
    } else if (sum) {
      *sum = backward_run<true, true>(given, g, inputs, grads, numel, Cached());
    } else {
      backward_run<true, false>(given, g, inputs, grads, numel, Cached());
    }
  }

  template <bool kWantInputs, bool kWantParameter, class Given, class Access>
  static double backward_run(Given given, const S* g, const Sources inputs, const Targets grads,
                             int64_t numel, Access access) {
    const auto wide_parameter = given.template of<WideGradients>();
    const auto parameter = given.template of<V>();
    double lanes[WideGradients::kLanes] = {};
    for (int64_t i = 0; i < numel;) {
      const int64_t end = numel - i < kBlock ? numel : i + kBlock;
      WideGradients wide_sum(0);
      V sum(0);
      for (; i + WideGradients::kLanes <= end; i += WideGradients::kLanes) {
        wide_sum = wide_sum + backward_at<kWantInputs, WideGradients>(i, g, inputs, wide_parameter,
                                                                      grads, access);
      }
      // The last block's tail: absent lanes read zeros and add zeros.
      for (; i < end; i += V::kLanes) {
        const First access{tail(end - i)};
        sum = sum + backward_at<kWantInputs, V>(i, g, inputs, parameter, grads, access);
      }
      if constexpr (kWantParameter) {
        accumulate(wide_sum, lanes, WideGradients::kLanes);
        accumulate(sum, lanes, V::kLanes);
      }
    }
    double total = 0;
    for (const double lane : lanes) total += lane;
    return given.unscaled(total);
  }

  static void backward_rows(const void* grad_output, const void* const* inputs_,
                            const void* const* numbers, void* const* grad_inputs, double* sums,
                            int64_t rows, int64_t columns, int64_t stride) {
    const auto* g = static_cast<const S*>(grad_output);
    const Sources inputs(inputs_);
    const Targets grads(grad_inputs);
    if (!grads.any) {
      backward_matrix<false, true>(g, inputs, numbers, grads, sums, rows, columns, stride);
    } else if (sums) {
      backward_matrix<true, true>(g, inputs, numbers, grads, sums, rows, columns, stride);
    } else {
      backward_matrix<true, false>(g, inputs, numbers, grads, sums, rows, columns, stride);
    }
  }

  template <bool kWantInputs, bool kWantParameter>
  static void backward_matrix(const S* g, const Sources inputs, const void* const* numbers,
                              const Targets grads, double* sums, int64_t rows, int64_t columns,
                              int64_t stride) {
    using W = WideGradients;
    for (int64_t begin = 0; begin < columns; begin += kTileColumns) {
      const Tile<W> tile(numbers, begin, columns);
      for (int64_t row = 0; row < rows;) {
        const int64_t last = rows - row < kAdditions ? rows : row + kAdditions;
        typename V::real partial[kTileColumns] = {};
        for (; row < last; ++row) {
          const int64_t at = row * stride;
          int64_t i = begin;
          for (; i < tile.wide_end; i += W::kLanes) {
            const auto term =
                backward_at<kWantInputs, W>(at + i, g, inputs, tile.at(i), grads, InOrder());
            auto* const sum = partial + (i - begin);
            if constexpr (kWantParameter) (W::load(sum) + term).store(sum);
          }
          for (; i < tile.end; i += V::kLanes) {
            const First access{tail(tile.end - i)};
            const auto parameter = of_columns<V>(numbers, i, access.count);
            const auto term =
                backward_at<kWantInputs, V>(at + i, g, inputs, parameter, grads, access);
            auto* const sum = partial + (i - begin);
            if constexpr (kWantParameter)
              (V::load(sum, access.count) + term).store(sum, access.count);
          }
        }
        if constexpr (kWantParameter) {
          for (int64_t i = begin; i < tile.end; ++i) sums[i] += partial[i - begin];
        }
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

template <class V32, class V64>
const Kernels* kernels_of(Activation activation) {
  switch (activation) {
    case Activation::kPlain:
      return Tables<CRReLU, V32, V64>::kernels;
    case Activation::kGated:
      return Tables<CRReLUGated, V32, V64>::kernels;
    case Activation::kPlaced:
      return Tables<CRReLUPlaced, V32, V64>::kernels;
    default:
      return Tables<Tabulated, V32, V64>::kernels;
  }
}

}  // namespace
}  // namespace crrelu
