// Typed calls of our operators through PyTorch's dispatcher. The handles are looked up once.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <tuple>

namespace crrelu {

using Crrelu = at::Tensor(const at::Tensor&, const at::Tensor&, int64_t);
using CrreluOut = at::Tensor&(const at::Tensor&, const at::Tensor&, int64_t, at::Tensor&);
using CrreluBackwardOp = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                            const at::Tensor&, int64_t,
                                                            std::array<bool, 2>);
using CrreluGlu = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t);
using CrreluGluBackwardOp = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
    std::array<bool, 3>);

using CrreluAt = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t);
using CrreluAtBackwardOp = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                              const at::Tensor&, const at::Tensor&,
                                                              int64_t, std::array<bool, 2>);
using TabulatedOp = at::Tensor(const at::Tensor&, const at::Tensor&);
using TabulatedBackwardOp = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&);

using CountOp = void(const at::Tensor&, const at::Tensor&, int64_t, int64_t, at::Tensor&);

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).template typed<Signature>();
}

inline const auto& crrelu_op() {
  static const auto op = find_operator<Crrelu>("crrelu_ext::crrelu");
  return op;
}
inline const auto& crrelu_out_op() {
  static const auto op = find_operator<CrreluOut>("crrelu_ext::crrelu", "out");
  return op;
}
inline const auto& crrelu_backward_op() {
  static const auto op = find_operator<CrreluBackwardOp>("crrelu_ext::crrelu_backward");
  return op;
}
inline const auto& crrelu_glu_op() {
  static const auto op = find_operator<CrreluGlu>("crrelu_ext::crrelu_glu");
  return op;
}
inline const auto& crrelu_glu_backward_op() {
  static const auto op = find_operator<CrreluGluBackwardOp>("crrelu_ext::crrelu_glu_backward");
  return op;
}
inline const auto& crrelu_at_op() {
  static const auto op = find_operator<CrreluAt>("crrelu_ext::crrelu_at");
  return op;
}
inline const auto& crrelu_at_backward_op() {
  static const auto op = find_operator<CrreluAtBackwardOp>("crrelu_ext::crrelu_at_backward");
  return op;
}
inline const auto& tabulated_op() {
  static const auto op = find_operator<TabulatedOp>("crrelu_ext::tabulated");
  return op;
}
inline const auto& tabulated_backward_op() {
  static const auto op = find_operator<TabulatedBackwardOp>("crrelu_ext::tabulated_backward");
  return op;
}
inline const auto& count_op() {
  static const auto op = find_operator<CountOp>("crrelu_ext::count_");
  return op;
}

}  // namespace crrelu
