"""Measure the gradients that a training loop passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from .parameter_groups import parameter_groups
from .signal_handlers import raised_by_signal_handler

__all__ = ["gradient_norms"]


def gradient_norms(
    gradients: Any, report: Callable[..., None], *, raise_errors: bool
) -> dict[str, float]:
    """Return the norm of all gradients together, and that of each part of the model, by tag.

    Args:
        gradients: A tree of arrays, as ``nn.value_and_grad`` returns it.
        report: Called with a message, and with ``topic=`` for what is reported once.
        raise_errors: Raise instead of reporting what is not a tree of arrays.

    Raises:
        TypeError: With ``raise_errors``, if there is no array in the tree.
    """
    try:
        flat: Any = tree_flatten(gradients)
        named = {str(name): array for name, array in flat if isinstance(array, mx.array)}
        if not named:
            raise TypeError(f"gradients is a {type(gradients).__name__} without arrays")
        # One evaluation of a few numbers; in float32, in which squares of float16 don't overflow.
        sums = mx.stack([mx.square(g.astype(mx.float32)).sum() for g in named.values()])
        squares = dict(zip(named, np.array(sums, np.float64).tolist(), strict=True))
    except Exception as error:
        if raise_errors or raised_by_signal_handler(error):
            raise
        report(
            f"gradients is not logged; pass what nn.value_and_grad returned as gradients, outside "
            f"compiled functions ({type(error).__name__}: {error})",
            topic="no gradients",
        )
        return {}

    def norm(names: list[str]) -> float:
        return float(np.sqrt(sum(squares[name] for name in names)))

    parts = parameter_groups({name: g.size for name, g in named.items()})
    return {
        "train/grad_norm": norm(list(named)),
        **{f"parameters/gradient_{part}": norm(names) for part, names in parts.items()},
    }
