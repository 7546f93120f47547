"""Run the model with parts of each sequence replaced by those of other sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import read_only
from ..attribution._checks import groups
from ..attribution.baselines import finite_mean, without_padding
from ..observation import EvaluatedBatch, Need
from ..results import FloatArray, Indices
from .runner import PassRunner

__all__ = ["Removals"]


class Removals(PassRunner):
    """Run passes in which parts of the sequences are replaced."""

    def removed(
        self,
        columns: Sequence[Indices],
        *,
        times: bool = False,
        blocks: Sequence[tuple[int, int]] = (),
        n_samples: int = 1,
    ) -> FloatArray:
        """Return targets with parts of each sequence replaced by those of other sequences.

        The other sequences are drawn from the whole held-out batch, never the sequence itself, and
        are the same at each call. If the batch has one sequence, parts are replaced by the mean of
        each feature over its time steps. Each part costs ``n_samples`` forward passes. Declare
        :attr:`Need.REMOVALS`.

        Args:
            columns: For each part, the columns of the inputs that are replaced at all time steps.
            times: True for one more part, the elapsed times.
            blocks: For one more part each, the first and last time step between which all inputs
                and elapsed times are replaced.
            n_samples: Number of other sequences for each.

        Returns:
            ``(n_samples, K, B)``, for ``K`` parts: columns, elapsed times, blocks.
        """
        self._require(Need.REMOVALS)
        arguments = [*columns, np.array(blocks)]
        return self._once(
            Need.REMOVALS,
            lambda: (*arguments, times, n_samples),
            lambda: self._removed(columns, times, blocks, n_samples),
        )

    def _removed(
        self,
        columns: Sequence[Indices],
        times: bool,
        blocks: Sequence[tuple[int, int]],
        n_samples: int,
    ) -> FloatArray:
        batch = self._batch
        others = _other_sequences(batch, n_samples)
        inputs = without_padding(batch.whole_inputs, batch.whole_mask)
        delta = batch.whole_time_delta if batch.takes_time else None
        delta = None if delta is None else without_padding(delta, batch.whole_mask)
        count = len(columns) + times + len(blocks)
        found = np.empty((n_samples, count, len(batch.inputs)), np.float32)
        for sample in range(n_samples):
            x, dt = _of_others(inputs, others, sample), _of_others(delta, others, sample)
            for group in groups(count, batch.inputs.size):
                varied = np.repeat(batch.inputs[None], len(group), axis=0)
                moved = None
                if dt is not None and batch.time_delta is not None:
                    moved = np.repeat(batch.time_delta[None], len(group), axis=0)
                for variant, part in enumerate(group.tolist()):
                    if part < len(columns):
                        varied[variant][..., columns[part]] = x[..., columns[part]]
                        continue
                    first, last = 0, batch.inputs.shape[1] - 1
                    if part >= len(columns) + times:
                        first, last = blocks[part - len(columns) - times]
                        varied[variant][:, first : last + 1] = x[:, first : last + 1]
                    if moved is not None:
                        moved[variant][:, first : last + 1] = dt[:, first : last + 1]
                values = self._evaluate(Need.REMOVALS, varied, moved).values
                found[sample, group] = values
        return read_only(found)


def _other_sequences(batch: EvaluatedBatch, n_samples: int) -> Indices | None:
    """Return ``(n_samples, B)`` indices of other sequences of the whole batch; None for none.

    They follow each sequence on a random circle through all, so that each is drawn equally often,
    and neighbours in the data, which may be alike, are no neighbours there.
    """
    finite = np.isfinite(batch.whole_inputs).all(axis=(1, 2))
    if batch.whole_time_delta is not None:
        finite &= np.isfinite(batch.whole_time_delta).all(axis=1)
    usable = np.flatnonzero(finite)
    if len(usable) < 2:
        return None
    circle = np.random.default_rng(0).permutation(usable)
    place = np.zeros(len(batch.whole_inputs), np.intp)
    place[circle] = np.arange(len(circle))
    # Spread over the circle, and never all the way round to the sequence itself.
    steps = 1 + np.arange(n_samples) * (len(circle) - 1) // n_samples
    found: Indices = circle[(place[batch.indices] + steps[:, None]) % len(circle)]
    return found


def _of_others(whole: Any, others: Indices | None, sample: int) -> Any:
    """Return the arrays of other sequences, or for None of them the mean over the batch."""
    if whole is None or others is not None:
        return None if whole is None or others is None else whole[others[sample]]
    return np.broadcast_to(finite_mean(whole, None), whole.shape)
