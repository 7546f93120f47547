"""Define records, which callbacks pass to writers: data with a tag, without model or MLX arrays.

The ``measure`` method of a callback yields records, and a writer logs them::

    yield Scalar("attribution/entropy", 0.83)
    yield Figure("attribution/heatmap", plot_feature_importance, importance)

Records carry numpy data only, so that they can be drawn and encoded elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from .signal_handlers import suppressed_errors

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = [
    "MAX_POINTS",
    "Array",
    "Data",
    "Embedding",
    "Figure",
    "Histogram",
    "Note",
    "Picture",
    "Place",
    "Record",
    "Scalar",
    "Text",
    "check_tag",
    "detached",
    "protect",
]


Place: TypeAlias = Literal["headline", "group", "nonzero", "data"]
"""Say where TensorBoard shows a record.

- ``"headline"``: among the few that a reader should see first, in one group of all callbacks;
- ``"group"``: in the group that the tag begins with;
- ``"nonzero"``: in its group from the first value other than 0 on, such as a count of failures;
- ``"data"``: on no card. It is in the log, where comparisons of runs and findings read it.
"""


def _check_place(record: Scalar | Figure | Picture, places: tuple[str, ...]) -> None:
    if record.place not in places:
        raise ValueError(
            f"place={record.place!r} of {record.tag!r}: pass {', '.join(map(repr, places))}"
        )


def check_tag(tag: Any) -> None:
    """Raise an error for a tag that names nothing.

    Raises:
        TypeError, ValueError: It is no str, or empty.
    """
    # Later, a wrong tag could no longer be traced to the line that made it.
    if not isinstance(tag, str):
        raise TypeError(f"tag={tag!r} is a {type(tag).__name__}: pass a str, such as 'group/name'")
    if not tag:
        raise ValueError("tag='' is empty: pass a name, such as 'group/name'")


@dataclass(frozen=True)
class Scalar:
    """Hold one number.

    Args:
        tag: ``group/name``; characters other than letters, digits, ``_ . - /`` become ``_``.
        value: NaN and infinities are written as they are.
        description: Meaning of the number, in one sentence with its unit; shown in the run's guide.
        ci: Lower and upper end of the 95 % confidence interval, over sequences unless the
            description names something else. It is skipped at steps where an end is not finite.
        place: Where TensorBoard shows the number of a callback, see :data:`Place`. Pass ``"data"``
            for all but the few most important numbers of a group and for numbers that can't
            change, and ``"nonzero"`` for counts that are expected to stay 0.

    Raises:
        TypeError: The value is not a number, or the tag not a str.
        ValueError: The lower end is above the upper one, the tag is empty, or the place is unknown.
    """

    tag: str
    value: float
    description: str = ""
    ci: tuple[float, float] | None = field(default=None, kw_only=True)
    place: Place = field(default="group", kw_only=True)

    def __post_init__(self) -> None:
        check_tag(self.tag)
        _check_place(self, get_args(Place))
        try:
            # Scalars of MLX become floats here, because MLX must not run on the writer's thread.
            object.__setattr__(self, "value", float(self.value))
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(f"value={self.value!r} of {self.tag!r}: pass a number") from error
        if self.ci is not None and self.ci[0] > self.ci[1]:
            raise ValueError(f"ci={self.ci} of {self.tag!r}: pass the lower end first")


@dataclass(frozen=True, eq=False)
class Histogram:
    """Count ``values`` between fixed ``edges``, so that steps can be compared.

    Values beyond the edges are counted in the first or last bin. Non-finite values are not counted;
    their number is logged as ``<tag>_nonfinite``.

    Args:
        tag: As for :class:`Scalar`.
        values: Any shape, floating.
        edges: ``(bins + 1,)``, increasing.
        description: Meaning of the values, with their unit.

    Raises:
        TypeError: The tag is no str.
        ValueError: The tag is empty.
    """

    tag: str
    values: npt.NDArray[np.floating[Any]]
    edges: npt.NDArray[np.floating[Any]]
    description: str = ""

    def __post_init__(self) -> None:
        check_tag(self.tag)


@dataclass(frozen=True, eq=False)
class Figure:
    """Hold data of a picture that the writer draws later, by calling ``plot(data, **options)``.

    Args:
        tag: As for :class:`Scalar`.
        plot: Returns a ``matplotlib.figure.Figure`` made without ``pyplot``.
        data: Numpy data or a result of :mod:`ncp_callbacks.analysis`; must not hold MLX arrays.
        options: Keywords for ``plot``.
        description: Meaning of the picture, in one or two sentences.
        place: ``"headline"`` for one of the few pictures that a reader should see first.

    Raises:
        TypeError: The tag is no str.
        ValueError: The tag is empty, or the place unknown.
    """

    tag: str
    plot: Callable[..., matplotlib.figure.Figure]
    data: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    place: Place = field(default="group", kw_only=True)

    def __post_init__(self) -> None:
        check_tag(self.tag)
        _check_place(self, ("headline", "group"))


@dataclass(frozen=True)
class Picture:
    """Hold a finished picture.

    Args:
        tag: As for :class:`Scalar`.
        png: The bytes of a PNG file.
        description: Meaning of the picture, in one or two sentences.
        place: As for :class:`Figure`.

    Raises:
        TypeError: The tag is no str, or ``png`` no bytes.
        ValueError: The tag is empty, the place unknown, or ``png`` is no PNG.
    """

    tag: str
    png: bytes
    description: str = ""
    place: Place = field(default="group", kw_only=True)

    def __post_init__(self) -> None:
        check_tag(self.tag)
        _check_place(self, ("headline", "group"))
        if not isinstance(self.png, bytes):
            raise TypeError(
                f"png of {self.tag!r} is a {type(self.png).__name__}: pass the bytes of a PNG file"
            )
        if not self.png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"png of {self.tag!r} is not a PNG: pass the bytes of a PNG file")


@dataclass(frozen=True)
class Text:
    """Hold Markdown for TensorBoard's Text dashboard.

    Args:
        tag: As for :class:`Scalar`.
        markdown: The text.

    Raises:
        TypeError: The tag is no str.
        ValueError: The tag is empty.
    """

    tag: str
    markdown: str

    def __post_init__(self) -> None:
        check_tag(self.tag)


@dataclass(frozen=True)
class Data:
    """Hold a JSON document for programs; no dashboard shows it.

    Args:
        tag: As for :class:`Scalar`.
        json: The document.

    Raises:
        TypeError: The tag is no str.
        ValueError: The tag is empty.
    """

    tag: str
    json: str

    def __post_init__(self) -> None:
        check_tag(self.tag)


@dataclass(frozen=True, eq=False)
class Array:
    """Hold raw numbers behind a figure, for comparing runs later and for the interactive view.

    Args:
        tag: By convention below ``_ncp/``.
        values: Any shape; written as float32.
        description: Meaning of the values, with their unit.
        kind: What the array is to the interactive view, such as ``"attribution"``; a view shows
            the kinds that it knows. "" for an array that no view shows.
        axes: What each axis counts, as in ``("time step", "feature")``.
        about: What else a reader must know, as JSON can hold it: ``{"cell": "encoder"}``.

    Raises:
        TypeError: The tag is no str.
        ValueError: The tag is empty, or there are not as many names of axes as axes.
    """

    tag: str
    values: npt.NDArray[np.floating[Any]]
    description: str = ""
    kind: str = field(default="", kw_only=True)
    axes: tuple[str, ...] = field(default=(), kw_only=True)
    about: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        check_tag(self.tag)
        if self.axes and len(self.axes) != np.ndim(self.values):
            raise ValueError(
                f"axes={self.axes} of {self.tag!r}: pass a name for each of the "
                f"{np.ndim(self.values)} axes"
            )


MAX_POINTS = 2000
"""Largest number of points of an :class:`Embedding` that the Projector moves without lagging."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """Hold points in many dimensions for TensorBoard's Projector.

    They are usually logged once, at the end of a run. They go into files beside the log, where each
    tag keeps only the points written last. A TensorBoard that is already open shows them after a
    restart.

    Args:
        tag: As for :class:`Scalar`.
        values: ``(N, D)``, at most 2,000 points; those with NaN or infinity are skipped.
        labels: Columns of ``N`` numbers or names to colour and search the points by, as in
            ``{"class": [...], "time": [...]}``; the first is shown beside a point.
        description: Meaning of a point.

    Raises:
        TypeError: The tag is no str.
        ValueError: The tag is empty, a shape does not fit, there are more points, or labels have
            another length.
    """

    tag: str
    values: npt.NDArray[np.floating[Any]]
    labels: Mapping[str, Sequence[Any] | npt.NDArray[Any]] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        check_tag(self.tag)
        shape = np.shape(self.values)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(
                f"values of {self.tag!r} have the shape {shape}: pass (points, dimensions)"
            )
        if shape[0] > MAX_POINTS:
            raise ValueError(
                f"{self.tag!r} has {shape[0]:,} points: pass at most {MAX_POINTS:,} of them"
            )
        for name, column in self.labels.items():
            if len(column) != shape[0]:
                raise ValueError(
                    f"labels[{name!r}] of {self.tag!r} has {len(column):,} entries for "
                    f"{shape[0]:,} points: pass one for each point"
                )


@dataclass(frozen=True)
class Note:
    """Hold a sentence that the user should know about the model or the run.

    The monitor reports it once, however often it is yielded. Writers do not get notes.
    """

    message: str


Record: TypeAlias = Scalar | Histogram | Figure | Picture | Text | Data | Array | Embedding


def detached(record: Record) -> Record:
    """Return a record whose arrays nobody else has.

    Records wait to be drawn and written, while a callback may go on with its arrays.
    """
    with suppressed_errors():  # What can't be copied is written as it is then.
        if isinstance(record, Array | Histogram | Embedding):
            return replace(record, values=copy.deepcopy(record.values))
        if isinstance(record, Figure):
            return replace(record, data=copy.deepcopy(record.data))
    return record


def protect(record: Record) -> None:
    """Make the arrays of a record read-only, since several writers share them."""
    if isinstance(record, Array | Histogram | Embedding) and isinstance(record.values, np.ndarray):
        record.values.flags.writeable = False
