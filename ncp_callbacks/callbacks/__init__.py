"""Callbacks that a :class:`~ncp_callbacks.Monitor` runs, each listed in ``__init__.pyi``."""

from .._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
