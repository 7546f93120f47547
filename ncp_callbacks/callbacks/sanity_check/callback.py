"""Whether attribution maps depend on what the model has learnt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import numpy.typing as npt

from ...attribution import DEFAULT_METHOD, Attribution, AttributionMethod, summarize
from ...attribution.compute import Attributor
from ...callback import (
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
from ...stats import CORRELATION, SIZE, Estimate
from ...stats.estimate import sd_of_sums
from ..state_space.analysis import state_space
from ..state_transitions.analysis import transition_statistics
from ..time_sensitivity.analysis import time_sensitivity
from .analysis import ALIKE, Cascade, Measures, map_similarity
from .plot import plot_sanity, plot_sanity_measures

__all__ = ["SanityCheck"]

_MEASURES = (
    ("strength", "Mean absolute {method} of the {target}, summed over steps and features"),
    ("entropy", "Entropy of the feature shares: 1 all features matter equally, 0 only one does"),
    (
        "elasticity",
        "RMS over sequences of the slope of the {target} in ln(time scale), in SDs of the target",
    ),
    ("target_sd", "SD of the {target} over sequences"),
    ("magnitude", "Mean length of the steps of the last cell's state"),
    ("mean_lag", "Mean distance from a sequence's last step, weighted by importance; in steps"),
    ("time_share", "Share of the intervals in the attribution of inputs and intervals together"),
    ("participation", "Number of dimensions that the last cell's states use"),
)


class SanityCheck(Callback):
    """Maps of the model against maps of the same model with its parameters randomised.

    What a map shows without what was learnt comes from the inputs and the architecture: recurrent
    networks attend to the last steps, and input × gradient to large inputs, before any training. So
    the likeness must fall while parameters are randomised, module by module from the output towards
    the input; and what is measured of the trained model means something only beside the same number
    of the randomised one.

    Randomised: the entries of each trainable array change places, always in the same way. Its
    distribution stays, and with it how far activations are driven, and the signs that LTCs rely on.
    What is frozen stays, and so do integers, booleans and zeros: masks, and connections that are
    not there. An array of one entry, or of equal ones, can't change. Afterwards the model is what
    it was, bit by bit.

    Costs for each stage a gradient pass and what the map itself costs; with input × gradient and
    gradient that pass is all. And one forward pass.

    ===================================== ====== ===================================================
    Tag                                   Record What
    ===================================== ====== ===================================================
    ``sanity_check/cascade``              image  likeness after each stage; measures of both models
    ``sanity_check/measures``             image  all that is measured of both models
    ``sanity_check/rank_correlation``     scalar Spearman's, of absolute maps of a sequence, all
                                                 parameters randomised: 1 the same order of
                                                 importance
    ``sanity_check/cosine``               scalar the same of maps with their signs
    ``sanity_check/strength``             scalar as in ``attribution/strength``, of these sequences
    ``sanity_check/strength_random``      scalar the same of the randomised model
    ``sanity_check/entropy``              scalar as in ``attribution/entropy``
    ``sanity_check/entropy_random``       scalar the same of the randomised model
    ``sanity_check/elasticity``           scalar as in ``time_delta/elasticity_rms``; with intervals
    ``sanity_check/elasticity_random``    scalar the same of the randomised model
    ``sanity_check/target_sd``            scalar SD of the target over sequences
    ``sanity_check/target_sd_random``     scalar the same of the randomised model
    ``sanity_check/magnitude``            scalar as in ``transitions/magnitude_mean`` of the last
                                                 cell; with a recurrent cell
    ``sanity_check/magnitude_random``     scalar the same of the randomised model
    ``sanity_check/mean_lag``             scalar as in ``attribution/mean_lag``
    ``sanity_check/mean_lag_random``      scalar the same of the randomised model
    ``sanity_check/time_share``           scalar as in ``attribution/time_share``; with intervals
    ``sanity_check/time_share_random``    scalar the same of the randomised model
    ``sanity_check/participation``        scalar as in ``hidden/participation_ratio`` of the last
                                                 cell; with a recurrent cell
    ``sanity_check/participation_random`` scalar the same of the randomised model
    ``sanity_check/completeness_error``   scalar of the map, where its method promises completeness:
                                                 as in ``attribution/completeness_error``
    ``sanity_check/sequences``            scalar sequences that were compared
    ``sanity_check/nonfinite``            scalar sequences with NaN or infinity in a map
    ``_ncp/sanity_check_cascade``         array  ``(2, stages + 1)``: mean rank correlation and
                                                 cosine after 0, 1, … stages
    ===================================== ====== ===================================================

    With a target other than the prediction at the last step, ``sanity_check`` is followed by its
    name, as in ``sanity_check_loss/cosine``. In the pictures the randomised model is dashed, as the
    baseline of the trained one, and the first look dash-dotted. Numbers come with 95 % intervals
    over sequences, which of fewer than 16, as by default, are indicative.

    From the second look on, a note says once when the rank correlation is above 0.71 with its whole
    95 % interval: then its square, the share of the order of the map that is there without what was
    learnt, is above a half.

    Args:
        method, baseline, time_baseline: Which map, see :class:`GradientAttribution`.
        stages: At most so many; modules next to each other are randomised together.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For fewer than one of ``stages``.

    Source: Adebayo et al. 2018 (arXiv:1810.03292), the cascading model parameter test; there
    parameters are drawn anew.
    """

    default_name = "sanity_check"

    def __init__(
        self,
        *,
        method: str | AttributionMethod = DEFAULT_METHOD,
        baseline: Any = None,
        time_baseline: Any = None,
        stages: int = 6,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = 8,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        if stages < 1:
            raise ValueError(f"stages={stages!r}: give at least 1")
        self._attributor = Attributor(method, baseline, time_baseline)
        self.needs = self._attributor.needs | {Need.TIME_GRADIENT, Need.STATES}
        self._stages = stages
        self._first: Measures | None = None
        self._first_curve: FloatArray | None = None
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "first": None if self._first is None else list(astuple(self._first)),
            "first_curve": self._first_curve,
            "warned": self._warned,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        first, curve = state["first"], state["first_curve"]
        self._first = None if first is None else Measures(*map(float, first))
        self._first_curve = None if curve is None else np.asarray(curve, np.float64)
        self._warned = bool(state["warned"])

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        result = self._cascade(observation)
        group = self.name + observation.target_slug
        yield from non_finite_count(
            group, result.non_finite, "sequences", "a map, at some stage, had NaN or infinity"
        )
        compared = int(np.isfinite(result.rank_correlation[-1]).sum())
        yield Scalar(f"{group}/sequences", compared, "Sequences whose maps were compared")
        if result.error is not None and np.isfinite(result.error).any():
            yield Scalar(
                f"{group}/completeness_error",
                float(np.quantile(result.error[np.isfinite(result.error)], 0.99)),
                "Difference between a sequence's attributions, summed, and the change of its "
                "target from the baseline; 99th percentile over sequences, in RMS changes",
            )
        yield from small_batch_note(observation)
        yield from self._likeness(result, group, observation)
        yield from self._measures(result, group, observation.target)
        yield Figure(
            f"{group}/cascade",
            plot_sanity,
            result,
            {
                "first": self._first,
                "first_curve": self._first_curve,
                "method": self._attributor.method.label,
                "step": observation.step,
            },
            f"Left: likeness of {self._attributor.method.label} of the {observation.target} "
            "to that of the trained model, while parameters are randomised from the output towards "
            "the input, mean over sequences; it must fall. Whiskers: 95 % CI"
            f"{ci_caveat(compared)}. Stages: {_listed(result.stages)}. "
            "Right: the same measures of both models. Dashed: the randomised one, as the baseline; "
            "dash-dotted: the first look.",
        )
        yield Figure(
            f"{group}/measures",
            plot_sanity_measures,
            result,
            {"first": self._first, "step": observation.step},
            "What is measured of the trained model (blue) and of it with its parameters randomised "
            "(grey), on the same sequences, each pair on a scale of its own. Dashed: the "
            "randomised one, as the baseline; dash-dotted: the first look.",
        )
        yield Array(f"_ncp/{group}_cascade", result.curve)
        if self._first is None:
            self._first, self._first_curve = result.randomised, result.curve[0]

    def _cascade(self, observation: Observation) -> Cascade:
        own = self._attributor.attribute(observation)
        alike = [map_similarity(own.inputs, own.inputs, observation.mask)]
        finite = _finite(own, observation.mask)
        stages: list[tuple[str, ...]] = []
        trained, numbers = _measured(observation, own)
        seen, found = observation, own
        with observation.randomised(self._stages) as cascade:
            for modules, seen in cascade:
                found = self._attributor.attribute(seen)
                alike.append(map_similarity(own.inputs, found.inputs, seen.mask))
                finite &= _finite(found, seen.mask)
                stages.append(modules)
            # Here the model is still that of the last stage.
            randomised, others = _measured(seen, found)
        return Cascade(
            _stage_names(stages),
            np.stack([a[0] for a in alike]),
            np.stack([a[1] for a in alike]),
            int((~finite).sum()),
            trained,
            randomised,
            (numbers, others),
            own.error,
        )

    def _likeness(
        self, result: Cascade, group: str, observation: Observation
    ) -> Iterator[Record | Note]:
        ranks, cosines = (
            values[-1][np.isfinite(values[-1])]
            for values in (result.rank_correlation, result.cosine)
        )
        if ranks.size:
            mean = Estimate.mean(ranks, CORRELATION)
            yield scalar_with_ci(
                f"{group}/rank_correlation",
                float(ranks.mean()),
                mean,
                "Rank correlation of a sequence's absolute map with that of the randomised model, "
                "mean over sequences: 1 the map doesn't depend on what was learnt",
                chart=True,
            )
            lowest, _ = mean.ci() or (float(ranks.mean()), 1.0)
            if self._first is not None and not self._warned and lowest > ALIKE:
                self._warned = True
                yield Note(
                    f"{group}: at step {observation.step} the maps keep most of their order "
                    f"(rank correlation {ranks.mean():.2f}) with all trainable parameters "
                    "randomised: they show the inputs and the architecture more than what was "
                    f"learnt. Look at {group}/rank_correlation, and try another method="
                )
        if cosines.size:
            yield scalar_with_ci(
                f"{group}/cosine",
                float(cosines.mean()),
                Estimate.mean(cosines, CORRELATION),
                "Cosine of a sequence's map with that of the randomised model, mean over "
                "sequences: 1 the same up to a factor, 0 unrelated",
                chart=True,
            )

    def _measures(self, result: Cascade, group: str, target: str) -> Iterator[Record]:
        both = zip(_MEASURES, astuple(result.trained), astuple(result.randomised), strict=True)
        method = self._attributor.method.label
        for (name, what), own, other in both:
            description = what.format(method=method, target=target)
            if np.isfinite(own):
                known = result.estimates[0].get(name)
                yield scalar_with_ci(f"{group}/{name}", own, known, description)
            if np.isfinite(other):
                yield scalar_with_ci(
                    f"{group}/{name}_random",
                    other,
                    result.estimates[1].get(name),
                    f"{description}; of the model with its parameters randomised",
                )


def _finite(found: Attribution, mask: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    values = found.inputs if mask is None else np.where(mask[..., None], found.inputs, 0.0)
    return np.asarray(np.isfinite(values).all(axis=(1, 2)))


def _measured(seen: Observation, found: Attribution) -> tuple[Measures, dict[str, Estimate]]:
    importance = summarize(found, mask=seen.mask)
    time = time_sensitivity(
        {1.0: seen.target_values},
        time_delta=seen.time_delta,
        time_gradient=seen.time_gradient,
        mask=seen.mask,
    )
    steps = space = None
    if seen.states:
        steps = transition_statistics(seen.states[-1].values, mask=seen.mask)
        space = state_space(seen.states[-1].values, mask=seen.mask)
    measures = Measures(
        strength=float(importance.importance.sum()) if importance.sequences else float("nan"),
        entropy=importance.entropy,
        elasticity=time.relative_elasticity if time.sequences else float("nan"),
        target_sd=time.target_sd,
        magnitude=float("nan") if steps is None else steps.magnitude_mean,
        mean_lag=importance.mean_lag,
        time_share=float("nan")
        if importance.time_delta_share is None
        else importance.time_delta_share,
        participation=float("nan") if space is None else space.participation_ratio,
    )
    numbers = importance.estimates() if importance.sequences else {}
    if steps is not None and "magnitude_mean" in steps.estimates:
        numbers["magnitude"] = steps.estimates["magnitude_mean"]
    if space is not None and "participation_ratio" in space.estimates:
        numbers["participation"] = space.estimates["participation_ratio"]
    if time.sequences:
        y = time.by_sequence[0] - time.target_mean
        parts = np.stack([np.ones(len(y)), y, y**2], axis=1)
        numbers["target_sd"] = Estimate.of_sums(sd_of_sums, parts, SIZE)
        of_time = time.estimates()
        if "elasticity_rms" in of_time:
            numbers["elasticity"] = of_time["elasticity_rms"]
    return measures, numbers


def _stage_names(stages: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Of each stage's first module the end of its path that no other has, and how many more."""
    paths = [path for modules in stages for path in modules]

    def short(path: str) -> str:
        parts = path.split(".")
        for count in range(1, len(parts)):
            end = parts[-count:]
            alone = sum(other.split(".")[-count:] == end for other in paths) == 1
            if alone and not end[0].isdigit():
                return ".".join(end)
        return path or "model"

    return tuple(
        short(modules[0]) + (f" +{len(modules) - 1}" if len(modules) > 1 else "")
        for modules in stages
    )


def _listed(stages: tuple[str, ...]) -> str:
    return ", ".join(f"{number} {name}" for number, name in enumerate(stages, start=1))
