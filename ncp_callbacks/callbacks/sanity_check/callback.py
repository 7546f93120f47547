"""Log whether attribution maps depend on what the model has learnt."""

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
from ...observation import EvaluatedBatch, Need, Observation, Trajectory
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

# Of all parameters. A network of which half of the shuffles keep the map passes in one run of 32.
_SHUFFLES = 5

_DESCRIPTIONS = {
    "rank_correlation": "Rank correlation of a sequence's absolute map with the map of the "
    "randomised model, mean over sequences: 1 if the map doesn't depend on what was learnt",
    "rank_correlation_min": "Rank correlation with the map of the randomised model, the least of "
    "{shuffles} shuffles of the parameters: whether the maps are alike may depend on the shuffle",
    "cosine": "Cosine of a sequence's map with the map of the randomised model, mean over "
    "sequences: 1 is equal up to a factor, 0 unrelated",
    "completeness_error": "Difference between the sum of a sequence's attributions and the change "
    "of its target from the baseline; 99th percentile over sequences, relative to the RMS change "
    "of the target",
    "cascade": "Left: similarity of {method} of the {target} to that of the trained model while "
    "parameters are randomised from the output towards the input, mean over sequences; it should "
    "fall. Whiskers: 95 % CI{caveat}. Stages: {stages}. Right: measures of both models. Dashed: "
    "the randomised one, as the baseline; dash-dotted: the first snapshot",
    "measures": "Measures of the trained model (blue) and of the model with its parameters "
    "randomised (grey), for the same sequences, each pair on a scale of its own. Dashed: the "
    "randomised one, as the baseline; dash-dotted: the first snapshot",
}
_MEASURES = {
    "strength": "Mean absolute {method} of the {target}, summed over time steps and features",
    "entropy": "Entropy of the feature shares: 1 if all features matter equally, 0 if only one "
    "does",
    "elasticity": "RMS over sequences of the slope of the {target} in ln(time scale), in SDs of "
    "the target",
    "target_sd": "SD of the {target} over sequences",
    "magnitude": "Mean length of the steps of the last cell's state",
    "mean_lag": "Mean distance from a sequence's last time step, weighted by importance; in time "
    "steps",
    "time_share": "Share of the elapsed times in the attribution of inputs and elapsed times",
    "participation": "Number of dimensions that the last cell's states use",
}


class SanityCheck(Callback):
    """Compare the model with a copy whose parameters are randomised: its maps and its numbers.

    A map of the randomised model shows the inputs and the architecture only. Even before training,
    recurrent networks attend to the last time steps, and input × gradient to large inputs. So the
    similarity of the maps should fall while parameters are randomised, module by module from the
    output towards the input. A number of the trained model means something only if it differs from
    that of the randomised one.

    The entries of each trainable array are shuffled, with a fixed seed. This keeps their
    distribution, and so how far activations are driven, and the signs that LTCs rely on. Frozen
    parameters, integers, booleans and zeros stay: masks, and connections that don't exist. An array
    of one entry, or of equal ones, can't change. Afterwards the parameters are restored bit by bit.

    Each stage takes a gradient pass and the passes of the map; for input × gradient and gradient
    the gradient pass suffices. One forward pass more is needed. Where the maps are alike, four
    other shuffles of all parameters follow, each of which costs a stage: in a recurrent network
    that attends to the last time steps anyway, maps may be alike for one shuffle only.

    ===================================== ====== ===================================================
    Tag                                   Record What
    ===================================== ====== ===================================================
    ``sanity_check/cascade``              image  similarity after each stage; measures of both
                                                 models
    ``sanity_check/measures``             image  all measures of both models
    ``sanity_check/rank_correlation``     scalar Spearman's, of absolute maps of a sequence, all
                                                 parameters randomised: 1 the same order of
                                                 importance
    ``sanity_check/rank_correlation_min`` scalar the least of five shuffles; only where that of the
                                                 first is above 0.71 with its whole CI
    ``sanity_check/cosine``               scalar cosine of the signed maps
    ``sanity_check/strength``             scalar as in ``attribution/strength``, of these sequences
    ``sanity_check/strength_random``      scalar ``strength`` of the randomised model
    ``sanity_check/entropy``              scalar as in ``attribution/entropy``
    ``sanity_check/entropy_random``       scalar ``entropy`` of the randomised model
    ``sanity_check/elasticity``           scalar as in ``time_delta/elasticity_rms``; for models
                                                 that take elapsed times
    ``sanity_check/elasticity_random``    scalar ``elasticity`` of the randomised model
    ``sanity_check/target_sd``            scalar SD of the target over sequences
    ``sanity_check/target_sd_random``     scalar ``target_sd`` of the randomised model
    ``sanity_check/magnitude``            scalar as in ``transitions/magnitude_mean`` of the last
                                                 cell; for models with a recurrent cell
    ``sanity_check/magnitude_random``     scalar ``magnitude`` of the randomised model
    ``sanity_check/mean_lag``             scalar as in ``attribution/mean_lag``
    ``sanity_check/mean_lag_random``      scalar ``mean_lag`` of the randomised model
    ``sanity_check/time_share``           scalar as in ``attribution/time_share``; for models that
                                                 take elapsed times
    ``sanity_check/time_share_random``    scalar ``time_share`` of the randomised model
    ``sanity_check/participation``        scalar as in ``hidden/participation_ratio`` of the last
                                                 cell; for models with a recurrent cell
    ``sanity_check/participation_random`` scalar ``participation`` of the randomised model
    ``sanity_check/completeness_error``   scalar of the map, if its method promises completeness: as
                                                 in ``attribution/completeness_error``
    ``sanity_check/sequences``            scalar sequences that were compared
    ``sanity_check/nonfinite``            scalar sequences with NaN or infinity in a map
    ``_ncp/sanity_check_cascade``         array  ``(2, stages + 1)``: mean rank correlation and
                                                 cosine after 0, 1, … stages
    ===================================== ====== ===================================================

    With a target other than the prediction at the last time step, ``sanity_check`` is followed by
    its name, as in ``sanity_check_loss/cosine``. In the pictures the randomised model is dashed, as
    the baseline of the trained one, and the first snapshot dash-dotted. Numbers come with 95 % CIs
    over sequences, which are unreliable for fewer than 16, the default.

    From the second snapshot on, a note warns once when the rank correlation is above 0.71 with its
    whole 95 % CI, for each of five shuffles. Then its square is above a half: more than half of the
    order of the map does not depend on what was learnt.

    Args:
        method, baseline, time_baseline: The map, see :class:`GradientAttribution`.
        stages: Largest number of stages; neighbouring modules are randomised together.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For ``stages`` below 1.

    Source: the cascading test of Adebayo et al. 2018 (arXiv:1810.03292), which draws new parameters
    instead of shuffling them.
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
            raise ValueError(f"stages={stages!r}: pass at least 1")
        self._attributor = Attributor(method, baseline, time_baseline)
        self.needs = self._attributor.needs | {
            Need.TIME_GRADIENT, Need.STATES, Need.RANDOMISED,
        }  # fmt: skip
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

    @property
    def conditions(self) -> str:
        """Return the attribution method, its settings and baselines."""
        return self._attributor.summary

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        own = self._attributor.attribute(observation)
        result = _cascade(observation, own, self._attributor, self._stages)
        group, method = self.name + observation.target_slug, self._attributor.method.label
        yield from non_finite_count(
            group, result.non_finite, "sequences", "a map, at some stage, had NaN or infinity"
        )
        yield from small_batch_note(observation)
        yield from _similarities(result, group)
        least = None
        if _is_alike(_order(result.rank_correlation[-1])):
            least = _least_alike(observation, own, self._attributor, result)
            description = _DESCRIPTIONS["rank_correlation_min"].format(shuffles=_SHUFFLES)
            tag = f"{group}/rank_correlation_min"
            yield scalar_with_ci(tag, least.value, least, description, place="data")
        if self._first is not None and not self._warned and _is_alike(least):
            self._warned = True
            yield Note(
                f"{group}: at step {observation.step} the maps keep most of their order (rank "
                f"correlation {result.curve[0, -1]:.2f}) with all trainable parameters randomised, "
                f"in each of {_SHUFFLES} ways: they show the inputs and the architecture more than "
                f"what was learnt. Watch {group}/rank_correlation, and try another method="
            )
        yield from _measures(result, group, method=method, target=observation.target)
        yield from _figures(result, group, method, observation, self._first, self._first_curve)
        yield Array(f"_ncp/{group}_cascade", result.curve)
        if self._first is None:
            self._first, self._first_curve = result.randomised, result.curve[0]


def _order(ranks: FloatArray) -> Estimate | None:
    """Return the mean of rank correlations ``(B,)``; None if none is finite."""
    known = _finite_values(ranks)
    return Estimate.mean(known, CORRELATION) if known.size else None


def _is_alike(order: Estimate | None) -> bool:
    """Return whether the rank correlation is beyond :data:`ALIKE` with its whole CI."""
    if order is None:
        return False
    lowest, _ = order.ci() or (order.value, 1.0)
    return lowest > ALIKE


def _least_alike(
    observation: Observation, own: Attribution, attributor: Attributor, result: Cascade
) -> Estimate:
    """Return the rank correlation that is least, of the shuffle of the cascade and of others."""
    found = [_order(result.rank_correlation[-1])]
    for draw in range(1, _SHUFFLES):
        with observation.extra_passes.randomised(1, draw) as cascade:
            for _, shuffled in cascade:
                other = attributor.attribute(shuffled)
                found.append(_order(map_similarity(own.inputs, other.inputs, shuffled.mask)[0]))
    return min((order for order in found if order is not None), key=lambda order: order.value)


def _figures(
    result: Cascade,
    group: str,
    method: str,
    observation: Observation,
    first: Measures | None,
    first_curve: FloatArray | None,
) -> Iterator[Figure]:
    stages = ", ".join(f"{number} {name}" for number, name in enumerate(result.stages, start=1))
    caveat = ci_caveat(len(_finite_values(result.rank_correlation[-1])))
    options: dict[str, Any] = {"first": first, "step": observation.step}
    yield Figure(
        f"{group}/cascade",
        plot_sanity,
        result,
        {**options, "first_curve": first_curve, "method": method},
        _DESCRIPTIONS["cascade"].format(
            method=method, target=observation.target, caveat=caveat, stages=stages
        ),
    )
    tag = f"{group}/measures"
    yield Figure(tag, plot_sanity_measures, result, options, _DESCRIPTIONS["measures"])


def _cascade(
    observation: Observation, own: Attribution, attributor: Attributor, stages: int
) -> Cascade:
    """Return the maps' similarity to those of the trained model, and measures of both models."""
    similar = [map_similarity(own.inputs, own.inputs, observation.mask)]
    finite = _finite(own, observation.mask)
    names: list[tuple[str, ...]] = []
    trained, trained_estimates = _measured(observation, own, observation.states)
    shuffled: EvaluatedBatch = observation
    found, passes = own, observation.extra_passes
    with passes.randomised(stages) as cascade:
        for modules, shuffled in cascade:
            found = attributor.attribute(shuffled)
            similar.append(map_similarity(own.inputs, found.inputs, shuffled.mask))
            finite &= _finite(found, shuffled.mask)
            names.append(modules)
        # Here the model is still that of the last stage.
        states = passes.states() if observation.states else ()
        randomised, randomised_estimates = _measured(shuffled, found, states)
    return Cascade(
        _stage_names(names),
        np.stack([s[0] for s in similar]),
        np.stack([s[1] for s in similar]),
        int((~finite).sum()),
        trained,
        randomised,
        (trained_estimates, randomised_estimates),
        own.error,
    )


def _similarities(result: Cascade, group: str) -> Iterator[Scalar]:
    compared = len(_finite_values(result.rank_correlation[-1]))
    description = "Sequences whose maps were compared"
    yield Scalar(f"{group}/sequences", compared, description, place="data")
    if result.error is not None and np.isfinite(result.error).any():
        yield Scalar(
            f"{group}/completeness_error",
            float(np.quantile(_finite_values(result.error), 0.99)),
            _DESCRIPTIONS["completeness_error"],
        )
    for name in ("rank_correlation", "cosine"):
        values = _finite_values(getattr(result, name)[-1])
        if values.size:
            estimate, mean = Estimate.mean(values, CORRELATION), float(values.mean())
            yield scalar_with_ci(f"{group}/{name}", mean, estimate, _DESCRIPTIONS[name])


def _measures(result: Cascade, group: str, **words: str) -> Iterator[Scalar]:
    """Yield the measures of both models, with the words of their descriptions."""
    trained, randomised = result.estimates
    for name, text in _MEASURES.items():
        description = text.format(**words)
        value = getattr(result.trained, name)
        if np.isfinite(value):
            # The picture has both models side by side.
            estimate = trained.get(name)
            yield scalar_with_ci(f"{group}/{name}", value, estimate, description, place="data")
        value = getattr(result.randomised, name)
        if np.isfinite(value):
            description += "; of the model with its parameters randomised"
            estimate = randomised.get(name)
            tag = f"{group}/{name}_random"
            yield scalar_with_ci(tag, value, estimate, description, place="data")


def _finite_values(values: FloatArray) -> FloatArray:
    return values[np.isfinite(values)]


def _finite(found: Attribution, mask: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    """Return ``(B,)``, true for the sequences whose map is finite."""
    values = found.inputs if mask is None else np.where(mask[..., None], found.inputs, 0.0)
    return np.asarray(np.isfinite(values).all(axis=(1, 2)))


def _measured(
    observation: EvaluatedBatch, found: Attribution, cells: Sequence[Trajectory]
) -> tuple[Measures, dict[str, Estimate]]:
    """Return the measures of a model, and those of them that have an estimate."""
    importance = summarize(found, mask=observation.mask)
    time = time_sensitivity(
        {1.0: observation.target_values},
        time_delta=observation.time_delta,
        time_gradient=observation.time_gradient,
        mask=observation.mask,
    )
    values, estimates = {"target_sd": time.target_sd}, {}
    if importance.sequences:
        values["strength"] = float(importance.importance.sum())
        estimates.update(importance.estimates())
    values["entropy"], values["mean_lag"] = importance.entropy, importance.mean_lag
    if importance.time_delta_share is not None:
        values["time_share"] = importance.time_delta_share
    if cells:
        states = cells[-1].values
        steps = transition_statistics(states, mask=observation.mask)
        space = state_space(states, mask=observation.mask)
        values["magnitude"] = steps.magnitude_mean
        values["participation"] = space.participation_ratio
        if "magnitude_mean" in steps.estimates:
            estimates["magnitude"] = steps.estimates["magnitude_mean"]
        if "participation_ratio" in space.estimates:
            estimates["participation"] = space.estimates["participation_ratio"]
    if time.sequences:
        values["elasticity"] = time.relative_elasticity
        y = time.by_sequence[0] - time.target_mean
        parts = np.stack([np.ones(len(y)), y, y**2], axis=1)
        estimates["target_sd"] = Estimate.of_sums(sd_of_sums, parts, SIZE)
        if (elasticity := time.estimates().get("elasticity_rms")) is not None:
            estimates["elasticity"] = elasticity
    return Measures(**values), estimates


def _stage_names(stages: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return for each stage the shortest distinct path of its first module, and how many more."""
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
