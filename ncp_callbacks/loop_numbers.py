"""Read the numbers and gradients that a training loop passes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from .errors import one_line
from .parameter_groups import parameter_groups
from .records import Record, Scalar, check_tag
from .signal_handlers import raised_by_signal_handler

__all__ = ["LoopNumbers"]


class LoopNumbers:
    """Read what the loop passes; what is no number, or has no tag, is reported and skipped.

    Args:
        report: Called with a message, and with ``topic=`` for what is reported once.
        raise_errors: Raise instead of reporting what is skipped.
    """

    def __init__(self, report: Callable[..., None], *, raise_errors: bool) -> None:
        self._report, self._raise_errors = report, raise_errors

    @contextmanager
    def _skipping(self, message: Callable[[Exception], str], topic: str) -> Iterator[None]:
        """Report an error and skip what it concerns, or raise it if that was asked for."""
        try:
            yield
        except Exception as error:
            if self._raise_errors or raised_by_signal_handler(error):
                raise
            self._report(message(error), topic=topic)

    def scalars(self, values: Mapping[str, Any]) -> list[Record]:
        """Return scalar records of Python's, numpy's or MLX's numbers.

        Values that are not finite are reported and logged.

        Args:
            values: Numbers by tag.
        """
        records: list[Record] = []
        for tag, value in values.items():
            with self._skipping(_no_tag, f"no tag: {tag!r}"):
                check_tag(tag)
                with self._skipping(functools.partial(_no_number, tag, value), f"no number: {tag}"):
                    number = float(value.item() if hasattr(value, "item") else value)
                    records.append(Scalar(tag, number))
                    if not math.isfinite(number):
                        self._report(f"{tag} is {number}; it is logged as it is")
        return records

    def gradient_norms(self, gradients: Any) -> dict[str, float]:
        """Return the norm of all gradients together, and that of each part of the model, by tag.

        Args:
            gradients: A tree of arrays, as ``nn.value_and_grad`` returns it.

        Raises:
            TypeError: With ``raise_errors``, if there is no array in the tree.
        """
        with self._skipping(_no_gradients, "no gradients"):
            flat: Any = tree_flatten(gradients)
            named = {str(name): array for name, array in flat if isinstance(array, mx.array)}
            if not named:
                raise TypeError(f"gradients is a {type(gradients).__name__} without arrays")
            # One evaluation of a few numbers; squares of float16 don't overflow in float32.
            sums = mx.stack([mx.square(g.astype(mx.float32)).sum() for g in named.values()])
            squares = dict(zip(named, np.array(sums, np.float64).tolist(), strict=True))
            parts = parameter_groups({name: g.size for name, g in named.items()})
            groups = {"train/grad_norm": list(named)}
            groups |= {f"parameters/gradient_{part}": names for part, names in parts.items()}
            return {
                tag: float(np.sqrt(sum(squares[name] for name in names)))
                for tag, names in groups.items()
            }
        return {}


def _no_tag(error: Exception) -> str:
    return f"a number is not logged: {error}"


def _no_number(tag: str, value: Any, error: Exception) -> str:
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return (
        f"{tag} is a {type(value).__name__}{shape} and not logged; pass a number "
        f"({one_line(error)})"
    )


def _no_gradients(error: Exception) -> str:
    return (
        "gradients is not logged; pass what nn.value_and_grad returned as gradients, outside "
        f"compiled functions ({one_line(error)})"
    )
