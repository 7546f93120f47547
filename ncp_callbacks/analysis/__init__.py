"""Compute frozen results from arrays, without a model, plots or a loop."""

from .. import notebook as _notebook  # noqa: F401 (results show themselves)
from .._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
