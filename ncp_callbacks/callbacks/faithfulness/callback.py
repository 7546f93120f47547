"""Whether removing what an attribution map calls important changes the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...attribution import DEFAULT_METHOD, Attribution, AttributionMethod
from ...attribution.compute import Attributor
from ...callback import (
    AxisLimit,
    Callback,
    ci_caveat,
    non_finite_count,
    scalar_with_ci,
    small_batch_note,
)
from ...observation import Observation
from ...records import Array, Figure, Note, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import CORRELATION, REAL, SIZE, Estimate, Scale
from .analysis import Deletion, deletion, max_sensitivity, noise_similarity
from .plot import plot_faithfulness, rms_curves

__all__ = ["Faithfulness"]

_CHARTS = ("cpd", "cpd_random", "cpd_advantage", "infidelity")


class Faithfulness(Callback):
    """Inputs are removed in the order of a map, and the target watched: does the map know them?

    Costs ``(2 + orders) (steps - 1) + 2`` forward passes of each sequence, 116 by default, and
    ``1 + perturbations + len(noise)`` times what the map itself costs, 8 by default: look at few
    sequences, rarely. An input at one step is removed by setting it to the map's baseline;
    intervals are left as they are.

    Numbers are in RMS changes: 1 is the RMS over sequences of the change of the target when all
    inputs are removed, so that looks compare while the target grows. They come with 95 % intervals
    over sequences, in which this unit is taken as given, and the curves with bands, in which it is
    as uncertain as they are: 1 where all is removed, exactly. Of fewer than 16 sequences, as by
    default, they are indicative. A random order, mean over ``orders`` that are the same at every
    look, is what a map that knows nothing would have.

    =================================================== ====== =====================================
    Tag                                                 Record What
    =================================================== ====== =====================================
    ``faithfulness/curves``                             image  change of the target while inputs are
                                                               removed: largest attribution first,
                                                               at random, smallest first; shaded:
                                                               95 % intervals over sequences
    ``faithfulness/cpd``                                scalar way that the target goes while the
                                                               largest 20 % are removed in groups:
                                                               high is good
    ``faithfulness/cpd_random``                         scalar the same in random order
    ``faithfulness/cpd_advantage``                      scalar ``cpd - cpd_random`` of the same
                                                               sequences: above 0 the map knows
                                                               something
    ``faithfulness/cpp``                                scalar the same way while the smallest 20 %
                                                               are removed, the ``cpd`` of the
                                                               reversed order: low is good
    ``faithfulness/comprehensiveness_<percent>``        scalar change without the largest so many
                                                               percent: high is good
    ``faithfulness/comprehensiveness_random_<percent>`` scalar without a random share
    ``faithfulness/sufficiency_<percent>``              scalar change with only the largest so many
                                                               percent left: low is good
    ``faithfulness/sufficiency_random_<percent>``       scalar with only a random share left
    ``faithfulness/infidelity``                         scalar squared error of what the map says
                                                               that removing random sets does: 0
                                                               exact, 1 no better than a map of
                                                               zeros
    ``faithfulness/infidelity_random``                  scalar the same of the shuffled map
    ``faithfulness/max_sensitivity``                    scalar largest change of the map when inputs
                                                               change by at most 0.1 SD, over its
                                                               norm
    ``faithfulness/ssim_noise_<percent>``               scalar structural similarity of the map with
                                                               that under noise of so many percent
                                                               of the inputs' variance: 1 the same,
                                                               0 unrelated
    ``faithfulness/change``                             scalar the unit, in units of the target
    ``faithfulness/sequences``                          scalar sequences that went in
    ``faithfulness/nonfinite``                          scalar sequences left out: NaN or infinity
    ``_ncp/faithfulness_curves``                        array  ``(4, K + 1)``: share removed, and
                                                               RMS change: largest first, random,
                                                               smallest first
    =================================================== ====== =====================================

    With a target other than the prediction at the last step, ``faithfulness`` is followed by its
    name, as in ``faithfulness_loss/cpd``.

    Inputs with features removed are unlike those that the model was trained with, and what it makes
    of them may be chance. That holds for the random order too: trust the advantage, not the curve.

    A map that is stable under noise need not be right: one that never changes is, too. Where it is
    a product with the input, it also changes by as much as the input does.

    Args:
        method, baseline, time_baseline: Which map, see :class:`GradientAttribution`. Inputs that
            are removed are set to the baseline of the map; where that is drawn, to its mean.
        steps: In how many groups all inputs are removed, a multiple of 10.
        orders: How many random orders.
        perturbations: For ``max_sensitivity``, how many slightly different inputs; 0 leaves it out.
        noise: For ``ssim_noise``, variances of the noise that is added to inputs, in units of each
            feature's; the same noise at every look. Those of Lechner et al. 2020 by default; ``()``
            leaves it out.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For arguments out of their range.
    """

    default_name = "faithfulness"
    _TOP, _PORTIONS, _RADIUS = 0.2, (0.1, 0.2, 0.5), 0.1

    def __init__(
        self,
        *,
        method: str | AttributionMethod = DEFAULT_METHOD,
        baseline: Any = None,
        time_baseline: Any = None,
        steps: int = 20,
        orders: int = 4,
        perturbations: int = 4,
        noise: Sequence[float] = (0.1, 0.2, 0.3),
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = 8,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        if steps < 10 or steps % 10:
            raise ValueError(f"steps={steps!r}: give a multiple of 10, at least 10")
        if orders < 1:
            raise ValueError(f"orders={orders!r}: give at least 1 random order to compare with")
        if perturbations < 0:
            raise ValueError(f"perturbations={perturbations!r}: give how many, or 0 for none")
        self._attributor = Attributor(method, baseline, time_baseline)
        self.needs = self._attributor.needs
        self._noise = tuple(noise)
        wrong = [variance for variance in self._noise if not 0 < variance < math.inf]
        if wrong:
            raise ValueError(
                f"noise={noise!r}: give variances above 0, in units of the feature's own, or () "
                "for none"
            )
        if len({f"{100 * variance:g}" for variance in self._noise}) < len(self._noise):
            raise ValueError(f"noise={noise!r}: give each variance once")
        self._steps, self._orders, self._perturbations = steps, orders, perturbations
        self._limit = AxisLimit()

    def state_dict(self) -> dict[str, Any]:
        return {"limit": self._limit.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._limit = AxisLimit(float(state["limit"]))

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        found = self._attributor.attribute(observation)
        x0 = self._attributor.removal_baseline(observation)
        result = deletion(
            observation.evaluate,
            observation.inputs,
            found.inputs,
            baseline=x0,
            effects=self._effects(found, observation, x0),
            mask=observation.mask,
            steps=self._steps,
            orders=self._orders,
            top=self._TOP,
        )
        group = self.name + observation.target_slug
        yield from non_finite_count(
            group,
            result.non_finite,
            "sequences",
            "their map, or their target with inputs removed, had NaN or infinity",
        )
        yield Scalar(f"{group}/sequences", result.sequences, "Held-out sequences that went in")
        if not result.sequences:
            return
        yield from small_batch_note(observation)
        with np.errstate(invalid="ignore"):
            moved = np.square(result.decreasing[:, -1].astype(np.float64) * result.change)
        yield scalar_with_ci(
            f"{group}/change",
            result.change,
            Estimate.rms(moved) if result.change else None,
            f"RMS over sequences of the change of the {observation.target} when all inputs are "
            f"removed, in its own units: the unit of {group}",
        )
        if result.change == 0:
            yield Note(
                f"{group}: the {observation.target} is the same with all inputs removed, so there "
                "is nothing for a map to be faithful to, and only that is logged while it is so. "
                "Perhaps the baseline is what the inputs are; baseline= gives another"
            )
            return
        yield from self._curves(result, group, observation)
        yield from self._order(result, group, observation.target)
        yield from self._map(result, group, observation, found)

    def _effects(
        self, found: Attribution, observation: Observation, x0: FloatArray
    ) -> FloatArray | None:
        """Return by how much the map says that the target falls when a cell is removed."""
        if not found.method.is_slope:
            return found.inputs
        if found.inputs.shape != x0.shape:
            return None  # Slopes that are summed over what a token is embedded as say nothing.
        with np.errstate(invalid="ignore", over="ignore"):
            return found.inputs * (observation.inputs - x0)

    def _curves(self, result: Deletion, group: str, observation: Observation) -> Iterator[Record]:
        curves = rms_curves(result)
        method = self._attributor.method.label
        yield Figure(
            f"{group}/curves",
            plot_faithfulness,
            result,
            {
                "method": method,
                "target": observation.target,
                "limit": self._limit.covering(float(curves.max())),
                "step": observation.step,
            },
            f"RMS change of the {observation.target} over sequences while inputs are removed; 1 is "
            f"that without any. Blue: those of largest {method} first; grey: at random; vermilion: "
            "smallest first. A map that knows what matters has blue above grey above vermilion; "
            f"the dotted line is where cpd and cpp end. {_shaded(result.sequences)}",
        )
        random = curves[2:].mean(axis=0)
        yield Array(f"_ncp/{group}_curves", np.stack([result.shares, curves[0], random, curves[1]]))

    def _order(self, result: Deletion, group: str, target: str) -> Iterator[Record | Note]:
        """What only the order of the map decides."""
        first, way = f"{self._TOP:.0%}", f"Way of the {target} while"
        unit = "in RMS changes when all are"
        advantage = result.cpd - result.cpd_random
        yield _mean(
            f"{group}/cpd",
            result.cpd,
            f"{way} the {first} of the inputs with the largest attribution are removed in groups, "
            f"{unit}: high where the map knows what matters",
        )
        yield _mean(f"{group}/cpd_random", result.cpd_random, f"{way} a random {first} are, {unit}")
        yield _mean(
            f"{group}/cpd_advantage",
            advantage,
            "cpd minus cpd_random of the same sequences: above 0 the map knows more than chance",
            REAL,
        )
        yield _mean(
            f"{group}/cpp",
            result.cpp,
            f"{way} the {first} with the smallest attribution are removed, {unit}: low where the "
            "map knows what doesn't matter",
        )
        low_high = Estimate.mean(advantage).ci() or (math.nan, math.nan)
        if low_high[1] < 0:
            yield Note(
                f"{group}: removing what the map calls important changes the {target} less than "
                f"removing inputs at random ({group}/cpd_advantage is below 0 with its whole "
                "interval): don't read the map as importance"
            )
        for share in self._PORTIONS:
            percent, much = f"{100 * share:g}", f"{share:.0%}"
            for tag, values, what in (
                (
                    "comprehensiveness",
                    result.comprehensiveness(share),
                    f"without the {much} of the inputs with the largest attribution; high is good",
                ),
                (
                    "comprehensiveness_random",
                    result.comprehensiveness_random(share),
                    f"without a random {much} of the inputs",
                ),
                (
                    "sufficiency",
                    result.sufficiency(share),
                    f"with only the {much} of the inputs with the largest attribution left; low is "
                    "good",
                ),
                (
                    "sufficiency_random",
                    result.sufficiency_random(share),
                    f"with only a random {much} of the inputs left",
                ),
            ):
                yield _mean(
                    f"{group}/{tag}_{percent}",
                    values,
                    f"Mean absolute change of the {target} {what}. In RMS changes without any",
                )

    def _map(
        self, result: Deletion, group: str, observation: Observation, found: Attribution
    ) -> Iterator[Record]:
        """What its numbers decide."""
        if result.infidelity is not None and result.infidelity_random is not None:
            yield _mean(
                f"{group}/infidelity",
                result.infidelity,
                "Mean squared difference between what the map says that removing a random set of "
                "inputs does to the target, and what it does; over that of a map of zeros: 0 exact",
            )
            yield _mean(
                f"{group}/infidelity_random",
                result.infidelity_random,
                "Infidelity of the map with its values shuffled over inputs and steps",
            )

        def attribute(inputs: FloatArray) -> FloatArray:
            return self._attributor.attribute(observation.reevaluate(inputs)).inputs

        if self._perturbations:
            yield from self._sensitivity(attribute, group, observation, found)
        yield from self._similarity(attribute, group, observation, found)

    def _sensitivity(
        self,
        attribute: Callable[[FloatArray], FloatArray],
        group: str,
        observation: Observation,
        found: Attribution,
    ) -> Iterator[Record]:
        moved = max_sensitivity(
            attribute,
            observation.inputs,
            found.inputs,
            mask=observation.mask,
            radius=self._RADIUS,
            draws=self._perturbations,
        )
        moved = moved[np.isfinite(moved)]
        if moved.size:
            yield _mean(
                f"{group}/max_sensitivity",
                moved,
                "Largest change of a sequence's map, over its norm, when each input changes by at "
                f"most {self._RADIUS:g} SD of its feature, of {self._perturbations} random ones: 0 "
                "the map is the same, 1 it changes by as much as it is large",
            )

    def _similarity(
        self,
        attribute: Callable[[FloatArray], FloatArray],
        group: str,
        observation: Observation,
        found: Attribution,
    ) -> Iterator[Record]:
        similar = noise_similarity(
            attribute,
            observation.inputs,
            found.inputs,
            variances=self._noise,
            mask=observation.mask,
        )
        for variance, values in zip(self._noise, similar, strict=True):
            known = values[np.isfinite(values)]
            if known.size:
                yield _mean(
                    f"{group}/ssim_noise_{100 * variance:g}",
                    known,
                    "Structural similarity (SSIM) of a sequence's map with that of the inputs "
                    f"under Gaussian noise of {100 * variance:g} % of each feature's variance "
                    f"({math.sqrt(variance):.2g} SDs): 1 the same map, 0 an unrelated one",
                    CORRELATION,
                )


def _shaded(sequences: int) -> str:
    if sequences < 2:
        return "One sequence has no CI."
    return f"Shaded blue and vermilion: 95 % CIs of these curves{ci_caveat(sequences)}."


def _mean(tag: str, values: FloatArray, description: str, scale: Scale = SIZE) -> Scalar:
    return scalar_with_ci(
        tag,
        float(values.mean()),
        Estimate.mean(values, scale),
        description,
        chart=tag.split("/")[-1] in _CHARTS,
    )
