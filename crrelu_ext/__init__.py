"""CRReLU, max(0, x) + ε · x · exp(-x²/2) with a learnable ε, as fast kernels for PyTorch."""

import importlib
from types import ModuleType

from crrelu_ext import reference
from crrelu_ext._ops import __version__, build_info
from crrelu_ext.derived import DerivedActivation
from crrelu_ext.dynamic import DynamicActivation, DynamicCRReLU
from crrelu_ext.functional import crrelu, crrelu_, crrelu_at, crrelu_glu
from crrelu_ext.history import plot_history
from crrelu_ext.mlp import CRReLUMLP
from crrelu_ext.models import parameter_groups, register, replace_activation
from crrelu_ext.modules import CRReLU
from crrelu_ext.scheduler import ActivationScheduler

__all__ = [
    "ActivationScheduler",
    "CRReLU",
    "CRReLUMLP",
    "DerivedActivation",
    "DynamicActivation",
    "DynamicCRReLU",
    "__version__",
    "build_info",
    "crrelu",
    "crrelu_",
    "crrelu_at",
    "crrelu_glu",
    "parameter_groups",
    "plot_history",
    "reference",
    "register",
    "replace_activation",
]


def __getattr__(name: str) -> ModuleType:
    if name == "eafo":  # needs scipy, so it is imported by those alone who ask for it
        return importlib.import_module("crrelu_ext.eafo")
    raise AttributeError(f"module 'crrelu_ext' has no attribute {name!r}")
