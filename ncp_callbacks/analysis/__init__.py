"""Pure functions from arrays to frozen results: no model, no plotting, no loop."""

from .. import notebook as _notebook  # noqa: F401 (results show themselves)
from .._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
