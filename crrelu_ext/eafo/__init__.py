"""EAFO, entropy-based activation function optimization: the theory as an engine.

See docs/theory.md for the mathematics. It needs scipy, which the extra ``eafo`` brings.
"""

try:
    import scipy  # noqa: F401
except ImportError as error:
    raise ImportError(
        "crrelu_ext.eafo and ActivationScheduler need scipy, which is not installed: "
        "pip install scipy (or this package with its extra, eafo)"
    ) from error

from crrelu_ext.eafo.activations import ClosedForm, CorrectedActivation
from crrelu_ext.eafo.densities import HistogramDensity, SampleDensity
from crrelu_ext.eafo.functionals import (
    Comparison,
    InverseError,
    compare,
    correction,
    crrelu_inverse_error,
    entropy_slope,
    inverse_correction,
    output_entropy,
    worst_activation,
)
from crrelu_ext.eafo.improve import Improvement, Step, improve

__all__ = [
    "ClosedForm",
    "Comparison",
    "CorrectedActivation",
    "HistogramDensity",
    "Improvement",
    "InverseError",
    "SampleDensity",
    "Step",
    "compare",
    "correction",
    "crrelu_inverse_error",
    "entropy_slope",
    "improve",
    "inverse_correction",
    "output_entropy",
    "worst_activation",
]
