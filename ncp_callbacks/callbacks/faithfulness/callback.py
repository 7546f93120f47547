"""Log whether removing the inputs that an attribution map calls important changes the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...attribution import DEFAULT_METHOD, Attribution, AttributionMethod
from ...attribution.compute import Attributor
from ...attribution.switches import with_switches
from ...callback import (
    AxisLimit,
    Callback,
    ci_caveat,
    non_finite_count,
    scalar_with_ci,
    small_batch_note,
)
from ...observation import Need, Observation
from ...records import Array, Figure, Note, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import CORRELATION, REAL, SIZE, Estimate, Scale
from ...target_values import Evaluate
from .analysis import Deletion, deletion, max_sensitivity, noise_similarity
from .plot import plot_faithfulness, rms_curves

__all__ = ["Faithfulness"]

_TOP, _PORTIONS, _RADIUS = 0.2, (0.1, 0.2, 0.5), 0.1
# All other numbers are in the picture, or in the log.
_CARDS = (
    "cpd",
    "cpd_random",
    "cpd_advantage",
    "infidelity",
    "infidelity_random",
    "max_sensitivity",
)
_DESCRIPTIONS = {
    "change": "RMS over sequences of the change of the {target} when all inputs are removed, in "
    "its own units: the unit of {group}",
    "curves": "RMS change of the {target} over sequences while inputs are removed; 1 is the "
    "change without any input. Blue: largest {method} first; grey: at random; vermilion: "
    "smallest first. For a map that knows what matters, blue is above grey and grey above "
    "vermilion. The dotted line is where cpd and cpp end",
    "cpd": "Path length of the {target} while the {top:.0%} of the inputs with the largest "
    "attribution are removed in groups, relative to the RMS change without any input: high if "
    "the map knows what matters",
    "cpd_random": "Path length of the {target} while a random {top:.0%} of the inputs are "
    "removed, relative to the RMS change without any input",
    "cpd_advantage": "cpd minus cpd_random of the same sequences: above 0 the map knows more than "
    "chance",
    "cpp": "Path length of the {target} while the {top:.0%} of the inputs with the smallest "
    "attribution are removed, relative to the RMS change without any input: low if the map knows "
    "what doesn't matter",
    "comprehensiveness": "Mean absolute change of the {target} without the {share:.0%} of the "
    "inputs with the largest attribution, relative to the RMS change without any input: high is "
    "good",
    "comprehensiveness_random": "Mean absolute change of the {target} without a random "
    "{share:.0%} of the inputs, relative to the RMS change without any input",
    "sufficiency": "Mean absolute change of the {target} with only the {share:.0%} of the inputs "
    "with the largest attribution left, relative to the RMS change without any input: low is good",
    "sufficiency_random": "Mean absolute change of the {target} with only a random {share:.0%} of "
    "the inputs left, relative to the RMS change without any input",
    "infidelity": "Mean squared difference between the change of the target that the map predicts "
    "for the removal of a random set of inputs, and the real change, relative to that of a map "
    "of zeros: 0 is exact",
    "infidelity_random": "Infidelity of the map with its values shuffled over inputs and time "
    "steps",
    "max_sensitivity": "Largest change of a sequence's map, over its norm, when each input "
    "changes by at most {radius:g} SD of its feature, of {count} random changes: 0 if the map "
    "stays the same, 1 if it changes by its own norm",
    "ssim_noise": "Structural similarity (SSIM) of a sequence's map with the map under Gaussian "
    "noise of {percent:g} % of each feature's variance ({sds:.2g} SDs): 1 is the same map, 0 an "
    "unrelated one",
}


class Faithfulness(Callback):
    """Remove inputs in the order of an attribution map, and measure the change of the target.

    This takes ``(2 + orders) (n_groups - 1) + 2`` forward passes of each sequence, 116 by default,
    and ``1 + perturbations + len(noise_variances)`` times the cost of the map, 8 times by default.
    Analyse few sequences, rarely. An input at one time step is removed by setting it to the map's
    baseline; elapsed times stay as they are.

    Numbers are in RMS changes: 1 is the RMS over sequences of the change of the target when all
    inputs are removed. So snapshots compare while the target grows. Numbers come with 95 % CIs over
    sequences that take this unit as exact. The CIs of the curves include its uncertainty, so that
    the curves end at exactly 1. For fewer than 16 sequences, the default, CIs are unreliable. A
    random order shows what a map without knowledge would reach: the mean over ``orders`` fixed
    random orders.

    =================================================== ====== =====================================
    Tag                                                 Record What
    =================================================== ====== =====================================
    ``faithfulness/curves``                             image  change of the target while inputs are
                                                               removed: largest attribution first,
                                                               at random, smallest first; shaded:
                                                               95 % CIs over sequences
    ``faithfulness/cpd``                                scalar path length of the target while the
                                                               largest 20 % are removed in groups:
                                                               high is good
    ``faithfulness/cpd_random``                         scalar path length in random order
    ``faithfulness/cpd_advantage``                      scalar ``cpd - cpd_random`` of the same
                                                               sequences: above 0 the map knows
                                                               something
    ``faithfulness/cpp``                                scalar path length while the smallest 20 %
                                                               are removed, the ``cpd`` of the
                                                               reversed order: low is good
    ``faithfulness/comprehensiveness_<percent>``        scalar change without this percentage of the
                                                               largest: high is good
    ``faithfulness/comprehensiveness_random_<percent>`` scalar change without a random share
    ``faithfulness/sufficiency_<percent>``              scalar change with only this percentage of
                                                               the largest left: low is good
    ``faithfulness/sufficiency_random_<percent>``       scalar change with only a random share left
    ``faithfulness/infidelity``                         scalar squared error of the change that the
                                                               map predicts for removing random
                                                               sets: 0 exact, 1 no better than a map
                                                               of zeros
    ``faithfulness/infidelity_random``                  scalar infidelity of the shuffled map
    ``faithfulness/max_sensitivity``                    scalar largest change of the map when inputs
                                                               change by at most 0.1 SD, over its
                                                               norm
    ``faithfulness/ssim_noise_<percent>``               scalar structural similarity of the map with
                                                               the map under noise of this
                                                               percentage of the inputs' variance: 1
                                                               equal, 0 unrelated
    ``faithfulness/change``                             scalar the unit, in units of the target
    ``faithfulness/sequences``                          scalar sequences analysed
    ``faithfulness/nonfinite``                          scalar sequences skipped because of NaN or
                                                               infinity
    ``_ncp/faithfulness_curves``                        array  ``(4, K + 1)``: share removed, and
                                                               RMS change: largest first, random,
                                                               smallest first
    =================================================== ====== =====================================

    With a target other than the prediction at the last time step, ``faithfulness`` is followed by
    its name, as in ``faithfulness_loss/cpd``.

    The model was not trained with inputs whose features are removed, and its output for them may be
    arbitrary. That holds for the random order too: trust the advantage rather than the curve.

    A map that is stable under noise need not be right, since a map that never changes is stable,
    too. A map that is a product with the input also changes by as much as the input does.

    Args:
        method, baseline, time_baseline: The map, see :class:`GradientAttribution`. Inputs are
            removed by setting them to the baseline of the map, or to its mean if it is random.
        n_groups: Number of groups in which all inputs are removed, a multiple of 10.
        orders: Number of random orders.
        perturbations: Number of slightly different inputs for ``max_sensitivity``; 0 for none.
        noise_variances: Variances of the noise that is added to the inputs for ``ssim_noise``, in
            units of each feature's variance; ``()`` for none. The noise is fixed. The defaults are
            those of Lechner et al. 2020.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For arguments out of their range.
    """

    default_name = "faithfulness"

    def __init__(
        self,
        *,
        method: str | AttributionMethod = DEFAULT_METHOD,
        baseline: Any = None,
        time_baseline: Any = None,
        n_groups: int = 20,
        orders: int = 4,
        perturbations: int = 4,
        noise_variances: Sequence[float] = (0.1, 0.2, 0.3),
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = 8,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        if n_groups < 10 or n_groups % 10:
            raise ValueError(f"n_groups={n_groups!r}: pass a multiple of 10, at least 10")
        if orders < 1:
            raise ValueError(f"orders={orders!r}: pass at least 1 random order to compare with")
        if perturbations < 0:
            raise ValueError(f"perturbations={perturbations!r}: pass a number, or 0 for none")
        self._attributor = Attributor(method, baseline, time_baseline)
        self.needs = self._attributor.needs | {Need.VARIANTS}
        if perturbations or noise_variances:
            self.needs |= {Need.VARIANT_GRADIENTS}
        self._variances = _checked_variances(noise_variances)
        self._n_groups, self._orders, self._perturbations = n_groups, orders, perturbations
        self._limit = self.keep("limit", AxisLimit())

    @property
    def conditions(self) -> str:
        """Return the attribution method, its settings and baselines."""
        return self._attributor.summary

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        found = self._attributor.attribute(observation)
        x0 = self._attributor.removal_baseline(observation)
        evaluate: Evaluate = observation.extra_passes.evaluate
        x, removed = observation.inputs, x0
        if observation.held_out.groups_columns:
            columns = observation.held_out.feature_of_columns(x.shape[2])
            evaluate, x, removed = with_switches(evaluate, x, x0, columns)
        result = deletion(
            evaluate, x, found.inputs, baseline=removed,
            effects=_predicted_effects(found, observation, x0), mask=observation.mask,
            n_groups=self._n_groups, orders=self._orders, top=_TOP,
        )  # fmt: skip
        group = self.name + observation.target_slug
        yield from non_finite_count(
            group, result.non_finite, "sequences",
            "their map, or their target with inputs removed, had NaN or infinity",
        )  # fmt: skip
        analysed = "Held-out sequences analysed"
        yield Scalar(f"{group}/sequences", result.sequences, analysed, place="data")
        if not result.sequences:
            return
        yield from small_batch_note(observation)
        yield _change(result, group, observation.target)
        if result.change == 0:
            yield Note(
                f"{group}: removing all inputs does not change the {observation.target}, so there "
                "is nothing for a map to be faithful to, and only the change is logged. If the "
                "inputs are equal to the baseline, pass another baseline="
            )
            return
        method = self._attributor.method.label
        yield from _curves(result, group, method, observation, self._limit)
        yield from _order_scalars(result, group, observation.target)
        yield from _infidelity_scalars(result, group)

        def attribute(inputs: FloatArray) -> FloatArray:
            return self._attributor.attribute(observation.extra_passes.reevaluate(inputs)).inputs

        if self._perturbations:
            yield from _sensitivity(attribute, group, observation, found, self._perturbations)
        yield from _similarities(attribute, group, observation, found, self._variances)


def _checked_variances(variances: Sequence[float]) -> tuple[float, ...]:
    if not all(0 < variance < math.inf for variance in variances):
        raise ValueError(
            f"noise_variances={variances!r}: pass variances above 0, in units of the feature's "
            "own, or () for none"
        )
    if len({f"{100 * variance:g}" for variance in variances}) < len(variances):
        raise ValueError(f"noise_variances={variances!r}: pass each variance once")
    return tuple(variances)


def _predicted_effects(
    found: Attribution, observation: Observation, baseline: FloatArray
) -> FloatArray | None:
    """Return the fall of the target that the map predicts for the removal of each cell."""
    if not found.method.is_slope:
        return found.inputs
    if found.inputs.shape != baseline.shape:
        return None  # Slopes that are summed over the embedding of a token predict nothing.
    with np.errstate(invalid="ignore", over="ignore"):
        return found.inputs * (observation.inputs - baseline)


def _change(result: Deletion, group: str, target: str) -> Scalar:
    with np.errstate(invalid="ignore"):
        squares = np.square(result.decreasing[:, -1].astype(np.float64) * result.change)
    estimate = Estimate.rms(squares) if result.change else None
    description = _DESCRIPTIONS["change"].format(target=target, group=group)
    return scalar_with_ci(f"{group}/change", result.change, estimate, description)


def _curves(
    result: Deletion, group: str, method: str, observation: Observation, limit: AxisLimit
) -> Iterator[Record]:
    curves = rms_curves(result)
    options = {
        "method": method,
        "target": observation.target,
        "limit": limit.covering(float(curves.max())),
        "step": observation.step,
    }
    description = _DESCRIPTIONS["curves"].format(target=observation.target, method=method)
    description += f". {_ci_legend(result.sequences)}"
    yield Figure(f"{group}/curves", plot_faithfulness, result, options, description)
    random = curves[2:].mean(axis=0)
    yield Array(f"_ncp/{group}_curves", np.stack([result.shares, curves[0], random, curves[1]]))


def _order_scalars(result: Deletion, group: str, target: str) -> Iterator[Record | Note]:
    """Yield the numbers that depend on the order of the map only."""
    for name in ("cpd", "cpd_random", "cpd_advantage", "cpp"):
        values = getattr(result, name)
        scale = REAL if name == "cpd_advantage" else SIZE
        yield _mean(group, name, values, scale, target=target, top=_TOP)
    ci = Estimate.mean(result.cpd_advantage).ci()
    if ci is not None and ci[1] < 0:
        yield Note(
            f"{group}: removing what the map calls important changes the {target} less than "
            f"removing inputs at random ({group}/cpd_advantage is below 0 with its whole 95 % CI): "
            "don't read the map as importance; try another method="
        )
    for share in _PORTIONS:
        for name in (
            "comprehensiveness", "comprehensiveness_random", "sufficiency", "sufficiency_random",
        ):  # fmt: skip
            values, end = getattr(result, name)(share), f"_{100 * share:g}"
            yield _mean(group, name, values, end=end, target=target, share=share)


def _infidelity_scalars(result: Deletion, group: str) -> Iterator[Record]:
    if result.infidelity is not None and result.infidelity_random is not None:
        yield _mean(group, "infidelity", result.infidelity)
        yield _mean(group, "infidelity_random", result.infidelity_random)


def _sensitivity(
    attribute: Callable[[FloatArray], FloatArray],
    group: str,
    observation: Observation,
    found: Attribution,
    count: int,
) -> Iterator[Record]:
    values = max_sensitivity(
        attribute, observation.inputs, found.inputs, mask=observation.mask, radius=_RADIUS,
        n_samples=count,
    )  # fmt: skip
    values = values[np.isfinite(values)]
    if values.size:
        yield _mean(group, "max_sensitivity", values, radius=_RADIUS, count=count)


def _similarities(
    attribute: Callable[[FloatArray], FloatArray],
    group: str,
    observation: Observation,
    found: Attribution,
    variances: Sequence[float],
) -> Iterator[Record]:
    similar = noise_similarity(
        attribute, observation.inputs, found.inputs, variances=variances, mask=observation.mask
    )
    for variance, all_values in zip(variances, similar, strict=True):
        values, percent = all_values[np.isfinite(all_values)], 100 * variance
        if values.size:
            yield _mean(
                group, "ssim_noise", values, CORRELATION,
                end=f"_{percent:g}", percent=percent, sds=math.sqrt(variance),
            )  # fmt: skip


def _ci_legend(sequences: int) -> str:
    if sequences < 2:
        return "One sequence has no CI."
    return f"Shaded blue and vermilion: 95 % CIs of these curves{ci_caveat(sequences)}."


def _mean(
    group: str, name: str, values: FloatArray, scale: Scale = SIZE, *, end: str = "", **words: Any
) -> Scalar:
    """Return the scalar of a mean over sequences, with the words of its description."""
    return scalar_with_ci(
        f"{group}/{name}{end}",
        float(values.mean()),
        Estimate.mean(values, scale),
        _DESCRIPTIONS[name].format(**words),
        place="group" if name in _CARDS else "data",
    )
