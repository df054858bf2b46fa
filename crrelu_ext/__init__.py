"""CRReLU, max(0, x) + ε · x · exp(-x²/2) with a learnable ε, as fast kernels for PyTorch."""

from crrelu_ext import reference
from crrelu_ext._ops import __version__, build_info
from crrelu_ext.functional import crrelu, crrelu_
from crrelu_ext.modules import CRReLU

__all__ = ["CRReLU", "__version__", "build_info", "crrelu", "crrelu_", "reference"]
