// The Python module _C: the fast entry to the operators, and what was built.
#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/python_numbers.h>
#include <torch/extension.h>

#include <algorithm>
#include <optional>

#include "cpu/dispatch.h"
#include "operators.h"

namespace py = pybind11;

namespace crrelu {
namespace {

/// Whether the dispatcher may be called at once. Tensor subclasses and modes want to see the call:
/// theirs goes the general way, through torch.ops.
bool plain(std::initializer_list<py::handle> arguments) {
  if (at::impl::torch_function_mode_enabled()) return false;
  return std::all_of(arguments.begin(), arguments.end(),
                     [](py::handle argument) { return THPVariable_CheckExact(argument.ptr()); });
}

void check_tensor(py::handle argument, const char* name, const char* op = "crrelu") {
  TORCH_CHECK_TYPE(THPVariable_Check(argument.ptr()) || py::hasattr(argument, "__torch_function__"),
                   op, ": ", name, " has type ", Py_TYPE(argument.ptr())->tp_name,
                   "; allowed is a torch.Tensor");
}

int64_t channel_dim_of(py::handle argument, const char* op = "crrelu") {
  TORCH_CHECK_TYPE(THPUtils_checkLong(argument.ptr()), op, ": channel_dim has type ",
                   Py_TYPE(argument.ptr())->tp_name, "; allowed is an int");
  return THPUtils_unpackLong(argument.ptr());
}

/// The call through torch.ops, where tensor subclasses and modes see it: of the operator's tensors
/// that go element by element, of what it has beside them, and perhaps of `out`.
PyObject* general(const char* op, const py::tuple& inputs, const py::tuple& others,
                  const py::dict& keywords = {}) {
  const auto function = py::module_::import("crrelu_ext._ops").attr("general");
  return function(op, inputs, others, **keywords).release().ptr();
}

/// Fewer elements are computed in less time than other threads take to notice.
constexpr int64_t kWorthReleasing = 4096;

/// The tensor that `call` returns; other Python threads run meanwhile if that is worth it.
template <class Call>
PyObject* wrapped(int64_t numel, const Call& call) {
  at::Tensor output;
  {
    std::optional<py::gil_scoped_release> no_gil;
    if (numel >= kWorthReleasing) no_gil.emplace();
    output = call();
  }
  return THPVariable_Wrap(std::move(output));
}

// Plain CPython functions: pybind11's own reading of arguments costs more than all the rest of a
// call on a small tensor.

/// crrelu(input, epsilon, channel_dim)
PyObject* crrelu(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 3, "crrelu: allowed are input, epsilon, channel_dim; given are ", count,
                   " arguments");
  const py::handle input(arguments[0]), epsilon(arguments[1]);
  const int64_t channel_dim = channel_dim_of(arguments[2]);
  if (!plain({input, epsilon})) {
    check_tensor(input, "input");
    check_tensor(epsilon, "epsilon");
    return general("crrelu", py::make_tuple(input), py::make_tuple(epsilon, channel_dim));
  }
  const auto &x = THPVariable_Unpack(input.ptr()), &e = THPVariable_Unpack(epsilon.ptr());
  return wrapped(x.numel(), [&] { return crrelu_op().call(x, e, channel_dim); });
  END_HANDLE_TH_ERRORS
}

/// crrelu_out(input, epsilon, channel_dim, out)
PyObject* crrelu_out(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 4, "crrelu: allowed are input, epsilon, channel_dim, out; given are ",
                   count, " arguments");
  const py::handle input(arguments[0]), epsilon(arguments[1]), out(arguments[3]);
  const int64_t channel_dim = channel_dim_of(arguments[2]);
  if (!plain({input, epsilon, out})) {
    check_tensor(input, "input");
    check_tensor(epsilon, "epsilon");
    check_tensor(out, "out");
    py::dict keywords;
    keywords["out"] = out;
    return general("crrelu", py::make_tuple(input), py::make_tuple(epsilon, channel_dim), keywords);
  }
  const auto &x = THPVariable_Unpack(input.ptr()), &e = THPVariable_Unpack(epsilon.ptr());
  at::Tensor y = THPVariable_Unpack(out.ptr());
  {
    py::gil_scoped_release no_gil;
    crrelu_out_op().call(x, e, channel_dim, y);
  }
  return py::reinterpret_borrow<py::object>(out).release().ptr();
  END_HANDLE_TH_ERRORS
}

/// crrelu_at(input, epsilon, place, channel_dim)
PyObject* crrelu_at(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 4,
                   "crrelu_at: allowed are input, epsilon, place, channel_dim; given are ", count,
                   " arguments");
  const py::handle input(arguments[0]), epsilon(arguments[1]), place(arguments[2]);
  const int64_t channel_dim = channel_dim_of(arguments[3], "crrelu_at");
  if (!plain({input, epsilon, place})) {
    check_tensor(input, "input", "crrelu_at");
    check_tensor(epsilon, "epsilon", "crrelu_at");
    check_tensor(place, "place", "crrelu_at");
    return general("crrelu_at", py::make_tuple(input), py::make_tuple(epsilon, place, channel_dim));
  }
  const auto &x = THPVariable_Unpack(input.ptr()), &e = THPVariable_Unpack(epsilon.ptr()),
             &p = THPVariable_Unpack(place.ptr());
  return wrapped(x.numel(), [&] { return crrelu_at_op().call(x, e, p, channel_dim); });
  END_HANDLE_TH_ERRORS
}

/// crrelu_glu(gate, up, epsilon, channel_dim)
PyObject* crrelu_glu(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 4, "crrelu_glu: allowed are gate, up, epsilon, channel_dim; given are ",
                   count, " arguments");
  const py::handle gate(arguments[0]), up(arguments[1]), epsilon(arguments[2]);
  const int64_t channel_dim = channel_dim_of(arguments[3], "crrelu_glu");
  if (!plain({gate, up, epsilon})) {
    check_tensor(gate, "gate", "crrelu_glu");
    check_tensor(up, "up", "crrelu_glu");
    check_tensor(epsilon, "epsilon", "crrelu_glu");
    return general("crrelu_glu", py::make_tuple(gate, up), py::make_tuple(epsilon, channel_dim));
  }
  const auto &x = THPVariable_Unpack(gate.ptr()), &y = THPVariable_Unpack(up.ptr()),
             &e = THPVariable_Unpack(epsilon.ptr());
  return wrapped(x.numel(), [&] { return crrelu_glu_op().call(x, y, e, channel_dim); });
  END_HANDLE_TH_ERRORS
}

/// tabulated(input, table)
PyObject* tabulated(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 2, "tabulated: allowed are input, table; given are ", count,
                   " arguments");
  const py::handle input(arguments[0]), table(arguments[1]);
  if (!plain({input, table})) {
    check_tensor(input, "input", "tabulated");
    check_tensor(table, "table", "tabulated");
    return general("tabulated", py::make_tuple(input), py::make_tuple(table));
  }
  const auto &x = THPVariable_Unpack(input.ptr()), &t = THPVariable_Unpack(table.ptr());
  return wrapped(x.numel(), [&] { return tabulated_op().call(x, t); });
  END_HANDLE_TH_ERRORS
}

/// count_(input, place, samples, channel_dim, counts)
PyObject* count_(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 5,
                   "count_: allowed are input, place, samples, channel_dim, counts; given are ",
                   count, " arguments");
  const py::handle input(arguments[0]), place(arguments[1]), counts(arguments[4]);
  const int64_t samples = THPUtils_unpackLong(arguments[2]),
                channel_dim = channel_dim_of(arguments[3], "count_");
  if (!plain({input, place, counts})) {
    check_tensor(input, "input", "count_");
    py::module_::import("crrelu_ext.dynamic")
        .attr("count")(input, place, samples, channel_dim, counts);
    Py_RETURN_NONE;
  }
  at::Tensor bins = THPVariable_Unpack(counts.ptr());
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  count_op().call(THPVariable_Unpack(input.ptr()), THPVariable_Unpack(place.ptr()), samples,
                  channel_dim, bins);
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

template <auto function>
py::object fast_function(const char* name) {
  static PyMethodDef definition = {
      name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL,
      nullptr};
  return py::reinterpret_steal<py::object>(PyCFunction_New(&definition, nullptr));
}

std::vector<std::string> isa_available() {
  std::vector<std::string> names;
  for (const auto& isa : supported_instruction_sets()) names.emplace_back(isa.name);
  return names;
}

}  // namespace
}  // namespace crrelu

PYBIND11_MODULE(_C, m) {
  m.attr("crrelu") = crrelu::fast_function<crrelu::crrelu>("crrelu");
  m.attr("crrelu_out") = crrelu::fast_function<crrelu::crrelu_out>("crrelu_out");
  m.attr("crrelu_at") = crrelu::fast_function<crrelu::crrelu_at>("crrelu_at");
  m.attr("crrelu_glu") = crrelu::fast_function<crrelu::crrelu_glu>("crrelu_glu");
  m.attr("tabulated") = crrelu::fast_function<crrelu::tabulated>("tabulated");
  m.attr("count_") = crrelu::fast_function<crrelu::count_>("count_");
  m.def("isa_available", crrelu::isa_available,
        "The instruction sets of this build that this processor has.");
  m.def(
      "isa", [] { return std::string(crrelu::instruction_set().name); },
      "The instruction set whose kernels run.");
}
