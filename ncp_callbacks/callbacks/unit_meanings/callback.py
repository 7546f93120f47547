"""Log what the units of a state code for, in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...callback import (
    AxisLimit,
    ByName,
    Callback,
    PairedChanges,
    cells_with_groups,
    ci_caveat,
    small_batch_note,
    whole_number,
)
from ...model import NotApplicable
from ...observation import Need, Observation, Trajectory
from ...records import Array, Figure, Note, Place, Record, Text
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ..record_log import RecordLog
from ..unit_names import ChosenUnits, unit_names
from .analysis import FOLDS, MIN_ACCURACY, UnitRules, predictors, unit_meanings
from .plot import plot_unit_information, plot_unit_meanings

__all__ = ["UnitMeanings"]

_MAX_FEATURES = 64

_SCALARS = {
    "accuracy": "Mean over the {count} units of {cell} of R², the share of a unit's variance that "
    "a decision tree of depth 3 explains on sequences that it was not fitted to; below 0 counts as "
    "0",
    "explained": "Share of the {count} units of {cell} that are described in words: R² of at least "
    "{least} on other sequences",
}
_OF_UNITS = {"accuracy": "R² of decision trees for {unit} of {cell} on other sequences"}
_PLACES: dict[str, Place] = {"accuracy": "group", "explained": "group"}


class UnitMeanings(Callback):
    """Describe in words what each unit codes for: ``unit 7: high when vibration > 1.2``.

    A decision tree of depth 3 predicts the state of a unit from the inputs of the time step, their
    means over the last time steps, the elapsed time, and factors of your own, such as a regime. It
    is scored on held-out sequences that it was not fitted to, and stated in words only where it
    explains half of the unit's variance there: about other units nothing simple is known. Mutual
    information also finds relations that trees miss, but of one predictor at a time.

    It costs the analysis, and a forward pass, or none if another callback needs a gradient.

    ==================================== ====== ==================================================
    Tag                                  Record What
    ==================================== ====== ==================================================
    ``meanings/units``                   image  when a unit is high, in words, with R² on other
                                                sequences, for 11 units
    ``meanings/information``             image  mutual information of predictors and units
    ``meanings/words``                   text   when each unit is high and low, in words
    ``meanings/accuracy``                scalar mean R² over the units
    ``meanings/explained``               scalar share of the units that are described in words
    ``meanings/accuracy_change``         scalar change of ``accuracy`` since the previous snapshot,
                                                same sequences
    ``meanings/numbers_changed``         scalar number of R² that changed beyond chance
    ``meanings_accuracy/<unit>``         scalar R² of a unit
    ``_ncp/meanings_information``        array  ``(K, P)``, mutual information in nats
    ``_ncp/meanings_accuracy``           array  ``(K,)``, R² of the rule for each unit, for the
                                                interactive view
    ``_ncp/meanings_words``              array  when each unit is high and low, in words: bytes of
                                                JSON, for the interactive view
    ==================================== ====== ==================================================

    With several cells the name of a cell is added, as in ``meanings_encoder/words``. Neurons of a
    wired cell have the names of their kind. R² comes with 95 % CIs over sequences, which are
    unreliable with fewer than 16 sequences.

    Args:
        factors: What may explain a unit beside the inputs, by name: an array with an entry for each
            held-out sequence, ``(B,)``, or for each of its time steps, ``(B, T)``. Floating values
            are numbers, all others categories.
        recent: Number of last time steps whose mean is a predictor; 1 for none.
        max_units: Largest number of units of a cell. Of more, those that vary most at the first
            snapshot are described.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For fewer than one of ``max_units`` or ``recent``, or factors of another shape.
    """

    needs = frozenset({Need.STATES, Need.CELL_STEPS})
    default_name = "meanings"

    def __init__(
        self,
        *,
        factors: Mapping[str, npt.ArrayLike] | None = None,
        recent: int = 3,
        max_units: int = 32,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        self._factors = {str(k): _checked(str(k), v) for k, v in (factors or {}).items()}
        self._recent = whole_number("recent", recent, 1)
        self._max_units = whole_number("max_units", max_units, 1)
        self._chosen = self.keep("units", ByName(ChosenUnits))
        self._limits = self.keep("limits", ByName(AxisLimit))
        self._changes = self.keep("changes", PairedChanges())

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        if observation.whole_batch < FOLDS:
            raise NotApplicable(
                f"units are described with at least {FOLDS} held-out sequences: hold out more"
            )
        factors = {k: _of_sequences(k, v, observation) for k, v in self._factors.items()}
        features = _features(observation)
        if not features and not factors:
            raise NotApplicable(
                f"no simple rules are fitted to frames, tokens or more than {_MAX_FEATURES} "
                "features: pass factors="
            )
        for cell, group in cells_with_groups(observation, self.name):
            yield from self._of(cell, group, observation, features, factors)
        yield from small_batch_note(observation)

    def _of(
        self,
        cell: Trajectory,
        group: str,
        observation: Observation,
        features: Mapping[str, FloatArray],
        factors: Mapping[str, npt.NDArray[Any]],
    ) -> Iterator[Record | Note]:
        """Yield the records of one cell."""
        chosen, mask = self._chosen[cell.cell], observation.held_out.mask_array
        count = cell.values.shape[2]
        names = chosen.names or unit_names(cell.cell, count, observation)
        units = chosen.choose(names, cell.values[mask].var(axis=0), self._max_units)

        def as_run(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return values[:, ::-1] if cell.reverse else values

        real = as_run(mask)
        explained_by = predictors(
            {k: as_run(v) for k, v in features.items()},
            {k: as_run(v) for k, v in factors.items()},
            real,
            recent=self._recent,
        )
        states = as_run(cell.values)[..., units]
        result = unit_meanings(
            states, [names[unit] for unit in units], explained_by, real, cell=cell.cell
        )
        if result is not None:
            limit = self._limits[cell.cell]
            yield from _pictures(result, group, limit, observation.step)
            yield from _numbers(result, group)
            yield from _arrays(result, group, units)
            yield from self._changes.compare(group, result.estimates, observation, "accuracy")


def _checked(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return a factor as an array.

    Raises:
        ValueError: If it has neither one axis nor two.
    """
    array = np.array(values)
    if array.ndim not in (1, 2):
        raise ValueError(
            f"factors[{name!r}] has the shape {array.shape}: pass an entry for each held-out "
            "sequence, (B,), or for each of its time steps, (B, T)"
        )
    return array


def _of_sequences(name: str, factor: npt.NDArray[Any], observation: Observation) -> Any:
    """Return ``(B, T)`` of the sequences analysed.

    Raises:
        ValueError: If the factor has another shape than the held-out batch.
    """
    length = observation.inputs.shape[1]
    wanted = (observation.whole_batch, length)[: factor.ndim]
    if factor.shape != wanted:
        raise ValueError(
            f"factors[{name!r}] has the shape {factor.shape}, and the held-out batch "
            f"{observation.whole_batch} sequences of {length} time steps: pass {wanted}"
        )
    values = factor[observation.indices]
    return values if values.ndim == 2 else np.repeat(values[:, None], length, axis=1)


def _features(observation: Observation) -> dict[str, FloatArray]:
    """Return the inputs by name, and elapsed times; nothing for frames, tokens and many columns."""
    held_out, inputs = observation.held_out, observation.inputs
    if held_out.groups_columns or inputs.shape[2] > _MAX_FEATURES:
        return {}
    found = {name: inputs[..., i] for i, name in enumerate(held_out.feature_names)}
    if observation.takes_time and observation.time_delta is not None:
        found["elapsed time"] = observation.time_delta
    return found


def _pictures(result: UnitRules, group: str, limit: AxisLimit, step: int) -> Iterator[Record]:
    yield Figure(
        f"{group}/units",
        plot_unit_meanings,
        result,
        {"step": step},
        f"When a unit of {result.cell} is high, by a decision tree of depth 3, with R² on "
        "sequences that trees were not fitted to. Whiskers are 95 % CIs over sequences"
        f"{ci_caveat(result.sequences)}.",
    )
    yield Figure(
        f"{group}/information",
        plot_unit_information,
        result,
        {"limit": limit.covering(float(result.information.max())), "step": step},
        f"Mutual information of the units of {result.cell} and what may explain them, in nats: 0 "
        "if they are independent.",
    )
    sentences = result.sentences()
    text = "\n".join(f"* {sentence}" for sentence in sentences)
    nothing = f"No unit of {result.cell} follows a simple rule: R² is below {MIN_ACCURACY:g}."
    yield Text(f"{group}/words", text or nothing)


def _arrays(result: UnitRules, group: str, units: npt.NDArray[np.intp]) -> Iterator[Array]:
    """Yield mutual information, and R² and words by unit for the interactive view."""
    about = {"cell": result.cell, "unit_names": list(result.names),
             "predictors": list(result.predictors)}  # fmt: skip
    what = "Mutual information of each unit and what may explain it, in nats"
    yield Array(
        f"_ncp/{group}_information", result.information, what, axes=("unit", "predictor"),
        about=about,
    )  # fmt: skip
    shown = {"cell": result.cell, "label": "R² of a rule for it", "units": units.tolist()}
    yield Array(
        f"_ncp/{group}_accuracy", result.accuracy, kind="unit values", axes=("unit",), about=shown
    )
    words = {
        unit: f"high when {high}; low when {low}"
        for unit, high, low in zip(units.tolist(), result.high, result.low, strict=True)
        if high
    }
    # Unlike the description of an array, its values are another at each snapshot.
    yield Array(
        f"_ncp/{group}_words",
        np.frombuffer(json.dumps(words, ensure_ascii=False).encode(), np.uint8).astype(np.float32),
        "What each unit codes for, as bytes of JSON",
        kind="unit words",
        axes=("byte",),
        about={"cell": result.cell},
    )


def _numbers(result: UnitRules, group: str) -> Iterator[Record | Note]:
    words = {"cell": result.cell, "count": str(len(result.names)), "least": f"{MIN_ACCURACY:g}"}
    log = RecordLog(group, _SCALARS, places=_PLACES, **words)
    if "accuracy" in result.estimates:
        mean = result.estimates["accuracy"]
        log.scalar("accuracy", mean.value, mean)
    log.scalar("explained", float(result.explained.mean()))
    of_units = RecordLog(f"{group}_accuracy", _OF_UNITS, places={}, **words)
    for name, value in zip(result.names, result.accuracy.tolist(), strict=True):
        if np.isfinite(value):
            number = result.estimates[f"accuracy/{name}"]
            of_units.scalar(name, value, number, entry="accuracy", unit=name)
    yield from log.records
    yield from of_units.records
