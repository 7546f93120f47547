"""What a callback hands to a writer: numbers with a tag, and nothing that runs the model.

A callback's ``measure`` yields records; a writer decides what becomes of them::

    yield Scalar("attribution/entropy", 0.83)
    yield Figure("attribution/heatmap", plot_feature_importance, importance)

Records carry numpy data only, so that they can be drawn and encoded on another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["Array", "Figure", "Histogram", "Note", "Record", "Scalar", "Text"]


@dataclass(frozen=True)
class Scalar:
    """One number.

    Args:
        tag: ``group/name``; characters other than letters, digits, ``_ . - /`` become ``_``.
        value: NaN and infinities are written as they are.
        description: What the number is, in one sentence with its unit; shown in the run's guide.
    """

    tag: str
    value: float
    description: str = ""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of ``values`` between fixed ``edges``, so that steps can be compared.

    Values beyond the edges are counted in the first or last bin; non-finite values are left out
    of the counts and logged beside the histogram as ``<tag>_nonfinite``.

    Args:
        tag: As for :class:`Scalar`.
        values: Any shape, floating.
        edges: ``(bins + 1,)``, increasing.
        description: What is counted, with its unit.
    """

    tag: str
    values: npt.NDArray[np.floating[Any]]
    edges: npt.NDArray[np.floating[Any]]
    description: str = ""


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture, drawn later by calling ``plot(data, **options)`` on the writer's thread.

    Args:
        tag: As for :class:`Scalar`.
        plot: Returns a ``matplotlib.figure.Figure`` made without ``pyplot``.
        data: Numpy data or a result of :mod:`ncp_callbacks.analysis`; must not hold MLX arrays.
        options: Keywords for ``plot``.
        description: What the picture shows, in one or two sentences.
    """

    tag: str
    plot: Callable[..., matplotlib.figure.Figure]
    data: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True)
class Text:
    """Markdown for TensorBoard's Text dashboard."""

    tag: str
    markdown: str


@dataclass(frozen=True, eq=False)
class Array:
    """Raw numbers behind a figure, for comparing runs later; no dashboard shows them.

    Args:
        tag: By convention below ``_ncp/``.
        values: Written as float32.
    """

    tag: str
    values: npt.NDArray[np.floating[Any]]
    description: str = ""


@dataclass(frozen=True)
class Note:
    """Something the user should know about the model or the run.

    The monitor says it once, however often it is made; it is not for writers.
    """

    message: str


Record: TypeAlias = Scalar | Histogram | Figure | Text | Array
