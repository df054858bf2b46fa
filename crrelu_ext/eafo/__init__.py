"""EAFO, entropy-based activation function optimization: the theory as an engine.

See docs/theory.md for the mathematics. It needs scipy: ``pip install crrelu-ext[eafo]``.
"""

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
