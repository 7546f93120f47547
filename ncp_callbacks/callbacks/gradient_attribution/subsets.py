"""Choose sequences that have a map of their own: those of each class, and the worst."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...attribution import Attribution, TemporalImportance, summarize
from ...model import NotApplicable
from ...observation import Observation

__all__ = ["of_each_class", "of_worst", "summary_of"]

_MAX_CLASSES = 8


def of_each_class(observation: Observation) -> Iterator[tuple[str, npt.NDArray[np.intp]]]:
    """Yield the name of each true class, at most 8, and the sequences that belong to it.

    Raises:
        NotApplicable: If the held-out targets are not one class for each sequence.
    """
    targets = observation.held_out.targets
    classes = np.asarray(targets) if isinstance(targets, mx.array) else np.zeros(0)
    if classes.ndim == 2 and classes.shape[1] == 1:
        classes = classes[:, 0]
    if classes.ndim != 1 or not np.issubdtype(classes.dtype, np.integer):
        raise NotApplicable(
            "by_class=True needs a class for each sequence: pass HeldOutBatch(inputs, targets=...) "
            "with integers of shape (batch,)"
        )
    names = observation.held_out.class_names
    for kind in np.unique(classes)[:_MAX_CLASSES].tolist():
        name = names[kind] if names is not None and 0 <= kind < len(names) else str(kind)
        yield name, np.flatnonzero(classes == kind)


def of_worst(observation: Observation, count: int) -> npt.NDArray[np.intp]:
    """Return the sequences with the largest losses, the largest first.

    Raises:
        NotApplicable: If there are no losses.
    """
    losses = observation.losses
    if losses is None and observation.target.startswith("loss"):
        losses = observation.target_values
    if losses is None:
        raise NotApplicable(
            "worst= needs the loss of each sequence: pass HeldOutBatch(inputs, targets=...) with "
            "targets that fit the outputs"
        )
    return np.argsort(-np.nan_to_num(losses, nan=-np.inf), kind="stable")[:count]


def summary_of(
    observation: Observation, found: Attribution, sequences: npt.NDArray[np.intp], which: str
) -> TemporalImportance:
    """Return the summary of the attribution of some sequences.

    Args:
        observation: The observation.
        found: The attribution of all its sequences.
        sequences: Indices of the sequences.
        which: What they are, for titles.
    """
    mask = observation.mask
    return summarize(
        found.of(sequences),
        target_values=observation.target_values[sequences],
        mask=None if mask is None else mask[sequences],
        target=f"{observation.target}, {which}",
        feature_names=observation.held_out.feature_names,
    )
