"""Know activation functions: what they compute, and which of their outputs are off or stuck."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import erf, expit

from .results import FloatArray

__all__ = ["ACTIVATIONS", "LECUN_BOUND", "UNKNOWN", "ActivationKind", "recognise_activation"]

BoolArray = npt.NDArray[np.bool_]
# Largest value of LeCun's scaled tanh, 1.7159 tanh(2x/3).
LECUN_BOUND = 1.7159


@dataclass(frozen=True)
class ActivationKind:
    """Describe an activation function, and which of its outputs count as off or stuck.

    Attributes:
        name: The function's usual name.
        sparse_means: The outputs that ``inactive`` counts, in words.
        inactive: Returns a boolean array from outputs: true where the unit is off or stuck.
        function: The function itself, to recognise it by.
    """

    name: str
    sparse_means: str
    inactive: Callable[[FloatArray], BoolArray]
    function: Callable[[FloatArray], FloatArray]


def _gelu_tanh(x: FloatArray) -> FloatArray:
    bent: FloatArray = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + bent)


def _gelu(x: FloatArray) -> FloatArray:
    bent: FloatArray = erf(x / np.sqrt(2))
    return 0.5 * x * (1 + bent)


def _exact_zero(a: FloatArray) -> BoolArray:
    return np.equal(a, 0)


_KINDS = (
    ActivationKind("relu", "exactly 0", _exact_zero, lambda x: np.maximum(x, 0)),
    ActivationKind(
        "relu6", "exactly 0 or 6", lambda a: (a == 0) | (a == 6), lambda x: np.clip(x, 0, 6)
    ),
    ActivationKind("tanh", "|a| > 0.95", lambda a: np.abs(a) > 0.95, np.tanh),
    ActivationKind(
        "lecun_tanh", "|a| > 95 % of 1.7159", lambda a: np.abs(a) > 0.95 * LECUN_BOUND,
        lambda x: LECUN_BOUND * np.tanh(2 * x / 3),
    ),
    ActivationKind("sigmoid", "a < 0.05 or a > 0.95", lambda a: np.abs(a - 0.5) > 0.45, expit),
    ActivationKind("silu", "a <= 0 (the flat side)", lambda a: a <= 0, lambda x: x * expit(x)),
    ActivationKind("gelu", "a <= 0 (the flat side)", lambda a: a <= 0, _gelu),
    ActivationKind("gelu_tanh", "a <= 0 (the flat side)", lambda a: a <= 0, _gelu_tanh),
    ActivationKind(
        "gelu_fast", "a <= 0 (the flat side)", lambda a: a <= 0, lambda x: x * expit(1.702 * x)
    ),
    ActivationKind(
        "elu", "a < -0.95", lambda a: a < -0.95,
        lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    ),
    ActivationKind(
        "leaky_relu", "a <= 0 (the leaking side)", lambda a: a <= 0,
        lambda x: np.maximum(x, 0.01 * x),
    ),
    ActivationKind("softplus", "a < 0.05", lambda a: a < 0.05, lambda x: np.logaddexp(x, 0)),
    ActivationKind("identity", "exactly 0", _exact_zero, lambda x: x),
)  # fmt: skip
UNKNOWN = ActivationKind("unknown", "exactly 0", _exact_zero, lambda x: x)
ACTIVATIONS: Mapping[str, ActivationKind] = {k.name: k for k in (*_KINDS, UNKNOWN)}


def recognise_activation(before: FloatArray, after: FloatArray) -> str | None:
    """Return the name of the activation that turns ``before`` into ``after``; None if unknown.

    It is the activation whose values come closest, within 1 %. Functions, modules, a user's own
    classes and half-precision versions are all recognised. If several fit equally (relu and
    identity on positive inputs), the first in :data:`ACTIVATIONS` is returned.

    Args:
        before: Inputs of the activation.
        after: Its outputs, of the same shape.
    """
    if before.shape != after.shape or not before.size:
        return None
    x, a = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
    keep = np.isfinite(x) & np.isfinite(a)
    x, a = x[keep], a[keep]
    if not x.size:
        return None
    best, name = 1e-2 * max(1e-3, float(np.abs(a).max())), None
    for kind in _KINDS:
        with np.errstate(over="ignore"):
            error = float(np.abs(kind.function(x) - a).max())
        if error < best:
            best, name = error, kind.name
    return name
