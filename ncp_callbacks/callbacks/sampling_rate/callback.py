"""Log how the target changes when time steps are dropped or merged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ...callback import (
    AxisLimit,
    Callback,
    PairedChanges,
    ci_caveat,
    non_finite_count,
    scalar_with_ci,
    small_batch_note,
    whole_number,
)
from ...observation import Need, Observation
from ...records import Figure, Note, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import SIZE, Estimate
from .analysis import SamplingChanges, sampling_changes, thinned
from .plot import plot_sampling_rate

__all__ = ["SamplingRate"]

_MAX_FACTORS = 4
_WAYS = {
    "dropped": "are dropped",
    "merged": "are merged, by their mean, with the next one that is left",
}
_CHANGE = (
    "Mean absolute change of the {target} when all but 1 of {factor} time steps {how}; in SDs of "
    "the target over sequences"
)
_SCALARS = {
    "dropped_x<factor>": _CHANGE,
    "merged_x<factor>": _CHANGE,
    "loss_<way>_x<factor>": "Mean loss when all but 1 of {factor} time steps {how}",
}


class SamplingRate(Callback):
    """Measure how the target changes at a lower sampling rate: time steps are dropped or merged.

    Of every ``k`` time steps the last one is left, and its elapsed time is that of all ``k``. A
    model that uses elapsed times as it should depends little on how often a slow signal was
    sampled. :class:`TimeSensitivity` makes time itself run faster; this callback imitates a slower
    sensor. What happens between the remaining samples is lost, too, so that a signal that changes
    from step to step moves the target of any model. In this case ``merged``, which keeps the mean
    of the signal, tells more.

    It costs two forward passes of shorter sequences for each factor. It does not apply to a target
    other than that of the last time step, or to a model of sequences of one length.

    ==================================== ====== ==================================================
    Tag                                  Record What
    ==================================== ====== ==================================================
    ``sampling/changes``                 image  mean absolute change of the target by factor
    ``sampling/dropped_x<factor>``       scalar that with time steps dropped, in SDs of the target
    ``sampling/merged_x<factor>``        scalar that with time steps merged
    ``sampling/loss_<way>_x<factor>``    scalar mean loss, if the batch has targets
    ``sampling/dropped_change``          scalar relative change of the first ``dropped`` since the
                                                previous snapshot, same sequences
    ``sampling/numbers_changed``         scalar number of changes that changed beyond chance
    ``sampling/nonfinite``               scalar sequences skipped because of NaN or infinity
    ==================================== ====== ==================================================

    With a target other than the prediction, ``sampling`` is followed by its name, as in
    ``sampling_loss/changes``. Numbers come with 95 % CIs over sequences, which are unreliable with
    fewer than 16 sequences.

    Args:
        factors: How many times fewer time steps: at most 4 whole numbers above 1.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For factors that are no whole numbers above 1, none or too many.
    """

    needs = frozenset({Need.FEWER_STEPS, Need.LOSSES})
    default_name = "sampling"

    def __init__(
        self,
        *,
        factors: Sequence[int] = (2, 4),
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        self._factors = [whole_number("factors", factor, 2) for factor in factors]
        if not 1 <= len(set(self._factors)) == len(self._factors) <= _MAX_FACTORS:
            raise ValueError(f"factors={factors!r}: pass 1 to {_MAX_FACTORS} different numbers")
        self._limit = self.keep("limit", AxisLimit())
        self._changes = self.keep("changes", PairedChanges())

    @property
    def conditions(self) -> str:
        """Return the factors."""
        return f"1 of {', '.join(map(str, self._factors))} time steps"

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        group = self.name + observation.target_slug
        values: dict[tuple[str, int], FloatArray] = {}
        losses: dict[tuple[str, int], FloatArray] = {}
        for factor in self._factors:
            _run(observation, factor, values, losses)
        result = sampling_changes(observation.target_values, values, target=observation.target)
        if result is None:
            yield Note(
                f"{group}: the {observation.target} is equal for all sequences, or not finite"
            )
            return
        yield _picture(result, group, self._limit, observation.step)
        yield from _numbers(result, losses, group)
        yield from small_batch_note(observation)
        headline = f"dropped_x{self._factors[0]}"
        yield from self._changes.compare(group, result.estimates, observation, headline, "dropped")
        yield from non_finite_count(
            group, result.non_finite, "sequences", "their target had NaN or infinity"
        )


def _run(
    observation: Observation,
    factor: int,
    values: dict[tuple[str, int], FloatArray],
    losses: dict[tuple[str, int], FloatArray],
) -> None:
    """Add the targets and losses with time steps dropped and merged."""
    delta = observation.time_delta
    left = thinned(observation.inputs, delta, observation.held_out.mask_array, factor)
    with_loss = observation.losses is not None
    for way in _WAYS:
        found = observation.extra_passes.with_fewer_steps(
            left.steps,
            left.mask,
            left.means if way == "merged" else None,
            left.time_delta,
            loss=with_loss,
        )
        values[way, factor] = found.values[0]
        if found.loss is not None:
            losses[way, factor] = found.loss[0]


def _picture(result: SamplingChanges, group: str, limit: AxisLimit, step: int) -> Figure:
    largest = max(float(change.max()) for change in result.change.values())
    return Figure(
        f"{group}/changes",
        plot_sampling_rate,
        result,
        {"limit": limit.covering(largest), "step": step},
        f"Mean absolute change of the {result.target} when time steps are dropped, or merged by "
        "their mean, in SDs of the target over sequences; elapsed times are added up. Whiskers are "
        f"95 % CIs over sequences{ci_caveat(result.sequences)}.",
    )


def _numbers(
    result: SamplingChanges, losses: dict[tuple[str, int], FloatArray], group: str
) -> Iterator[Scalar]:
    for factor in result.factors:
        for way, how in _WAYS.items():
            number = result.estimates[f"{way}_x{factor}"]
            yield scalar_with_ci(
                f"{group}/{way}_x{factor}",
                number.value,
                number,
                _CHANGE.format(target=result.target, factor=factor, how=how),
            )
    finite = np.isfinite(np.array(list(losses.values()))).all(axis=0)
    for (way, factor), values in losses.items():
        if finite.any():
            loss = Estimate.mean(values[finite], SIZE)
            description = _SCALARS["loss_<way>_x<factor>"].format(factor=factor, how=_WAYS[way])
            tag = f"{group}/loss_{way}_x{factor}"
            yield scalar_with_ci(tag, loss.value, loss, description, place="data")
