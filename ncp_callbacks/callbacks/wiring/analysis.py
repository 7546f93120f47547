"""Measure what flows along the synapses of a wired LTC, and what its groups of neurons do.

    flow = synaptic_flow(parameters, inputs, before, after, time_delta)
    flow.share[source, target]          # inputs first, then neurons
    group_shares(flow, groups)["inter", "command"]
    group_activity(states, groups, time_delta=dt)["command"].speed
    neuron_attribution(state_x_gradient)              # shares that sum to 1

``groups`` are :class:`NeuronGroup`, which hold the places in the state of the neurons of a kind: an
LTC and a wired CfC have them in different orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...liquid_equations import LTCParameters, ltc_pieces, ltc_sub_steps
from ...neuron_groups import NeuronGroup
from ...results import FloatArray, MappingResult
from ...stats import SHARE, SIZE, Estimate

__all__ = [
    "LEAK",
    "SENSORY",
    "GroupActivity",
    "SynapticFlow",
    "group_activity",
    "group_attribution",
    "group_share_estimates",
    "group_shares",
    "neuron_attribution",
    "synaptic_flow",
]

LEAK, SENSORY = "leak", "sensory"
# A synapse with less of its neuron's conductance counts as silent.
SILENT = 0.01


@dataclass(frozen=True, eq=False)
class SynapticFlow(MappingResult):
    """Hold means over sequences and time steps of what goes through the synapses of an LTC.

    With ``F`` inputs and ``H`` neurons, sources are the inputs, then the neurons.

    Attributes:
        share: ``(F + H, H)``, conductance of a synapse over its target's total conductance ``G``.
            With ``leak_share`` the shares of a target sum to 1.
        leak_share: ``(H,)``, conductance of the leak over the total conductance.
        current: ``(F + H, H)``, ``c (erev - v)`` of the target, above 0 where it raises ``v``. With
            ``leak_current`` the currents of a target sum to ``cm dv/dt``.
        leak_current: ``(H,)``, ``gleak (vleak - v)``.
        connected: ``(F + H, H)``, true where the cell has a synapse.
        silent: Share of the synapses with less than 1 % of their target's conductance; NaN where
            there are none.
        balance_error: Largest difference, over neurons, time steps and sequences, between the
            charge that moved the cell's own state over a step and the charge that the currents of
            its sub-steps bring, as a share of all that flows in it: rounding only, if the formula
            holds. NaN without samples.
        share_sums: ``(S, F + H, H)``, sums of the shares over the time steps of each sequence.
        leak_sums: ``(S, H)``, sums of the leak's shares over the time steps of each sequence.
        steps: ``(S,)``, number of time steps of each sequence in these sums.
        samples: Number of states.
        non_finite: Number of states at real time steps that were skipped: NaN or infinity.
        cell: Name of the recurrent cell.
    """

    share: FloatArray
    leak_share: FloatArray
    current: FloatArray
    leak_current: FloatArray
    connected: npt.NDArray[np.bool_]
    silent: float
    balance_error: float
    share_sums: FloatArray
    leak_sums: FloatArray
    steps: FloatArray
    samples: int
    non_finite: int
    cell: str


def synaptic_flow(
    parameters: LTCParameters,
    inputs: FloatArray,
    before: FloatArray,
    after: FloatArray,
    time_delta: FloatArray,
    *,
    mask: npt.NDArray[np.bool_] | None = None,
    cell: str = "cell",
) -> SynapticFlow:
    """Return conductance shares and currents at the states before each step, with its inputs.

    Args:
        parameters: Parameters of the cell.
        inputs: ``(S, T, F)``.
        before: ``(S, T, H)``, states before each step.
        after: ``(S, T, H)``, states after each step.
        time_delta: ``(S, T)``, elapsed time of each step.
        mask: ``(S, T)``, true at the time steps that count.
        cell: Name of the recurrent cell.

    Source: the terms of equation 1 of Lechner et al. 2020 (doi 10.1038/s42256-020-00237-3).
    """
    units, features = parameters.units, parameters.inputs
    real = np.ones(time_delta.shape, bool) if mask is None else np.asarray(mask, bool)
    finite = np.isfinite(time_delta)
    for array in (inputs, before, after):
        finite &= np.isfinite(array).all(axis=2)
    use = real & finite
    x, v, new, dt = inputs[use], before[use], after[use], time_delta[use]
    current, leak_current = np.zeros((features + units, units)), np.zeros(units)
    share_sums = np.zeros((len(real), features + units, units))
    leak_sums = np.zeros((len(real), units))
    sequence = np.nonzero(use)[0]
    erev = np.concatenate([parameters.sensory_erev, parameters.erev])
    for part in ltc_pieces(parameters, len(v)):
        opened = np.concatenate(
            [
                parameters.opening(x[part], sensory=True),
                parameters.opening(v[part], sensory=False),
            ],
            axis=1,
        )
        total = parameters.gleak + parameters.epsilon + opened.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts, leaks = opened / total[:, None], (parameters.gleak + parameters.epsilon) / total
        # States of a sequence stand together.
        there, starts = np.unique(sequence[part], return_index=True)
        share_sums[there] += np.add.reduceat(parts, starts, axis=0)
        leak_sums[there] += np.add.reduceat(leaks, starts, axis=0)
        current += (opened * (erev - v[part][:, None])).sum(axis=0)
        leak_current += (parameters.gleak * (parameters.vleak - v[part])).sum(axis=0)
    count = len(v)
    share, leak_share = share_sums.sum(axis=0), leak_sums.sum(axis=0)
    for array in (share, current, leak_share, leak_current):
        array /= max(count, 1)
    connected = np.concatenate([parameters.sensory_w, parameters.w]) != 0
    quiet = share[connected] < SILENT
    return SynapticFlow(
        share=share,
        leak_share=leak_share,
        current=current,
        leak_current=leak_current,
        connected=connected,
        silent=float(quiet.mean()) if quiet.size and count else float("nan"),
        share_sums=share_sums,
        leak_sums=leak_sums,
        steps=use.sum(axis=1).astype(np.float64),
        balance_error=_balance_error(parameters, x, v, new, dt),
        samples=count,
        non_finite=int((real & ~finite).sum()),
        cell=cell,
    )


def _balance_error(
    parameters: LTCParameters, x: FloatArray, v: FloatArray, after: FloatArray, dt: FloatArray
) -> float:
    """Return the largest difference of ``cm (after - before)`` from the sum of the currents.

    A sub-step holds the conductances of its beginning and takes the potential of its end.
    """
    if not len(v):
        return float("nan")
    sub_step = dt[:, None].astype(np.float64) / parameters.unfolds
    start = v.astype(np.float64)
    came, flowed = np.zeros_like(start), np.zeros_like(start)
    for state, conductance, drive in ltc_sub_steps(parameters, x, start, dt):
        came += sub_step * (drive - conductance * state)
        flowed += sub_step * (np.abs(drive) + np.abs(conductance * state))
    moved = parameters.cm * (after - start)
    size = flowed + np.abs(parameters.cm) * (np.abs(after) + np.abs(start))
    return float((np.abs(moved - came) / np.maximum(size, 1e-30)).max())


def group_shares(flow: SynapticFlow, groups: Sequence[NeuronGroup]) -> dict[tuple[str, str], float]:
    """Return the share of the conductance of a group's neurons that comes from another group.

    Args:
        flow: Shares of the synapses.
        groups: The neurons of each group.

    Returns:
        Means over neurons, by ``(source, target)``, where there are synapses; sources are also
        "leak" and "sensory". Those of a target sum to 1.
    """
    units = len(flow.leak_share)
    features = len(flow.share) - units
    sources = [(SENSORY, np.arange(features))]
    sources += [(group.name, features + group.columns) for group in groups]
    found: dict[tuple[str, str], float] = {}
    for target in groups:
        found[LEAK, target.name] = float(flow.leak_share[target.columns].mean())
        for name, rows in sources:
            block = np.ix_(rows, target.columns)
            if flow.connected[block].any():
                found[name, target.name] = float(flow.share[block].sum(axis=0).mean())
    return found


def group_share_estimates(
    flow: SynapticFlow, groups: Sequence[NeuronGroup]
) -> dict[tuple[str, str], Estimate]:
    """Return the shares of :func:`group_shares` as estimates over sequences."""
    features = flow.share.shape[0] - flow.share.shape[1]
    sources = [(SENSORY, np.arange(features))]
    sources += [(group.name, features + group.columns) for group in groups]
    found: dict[tuple[str, str], Estimate] = {}
    for target in groups:
        leak = flow.leak_sums[:, target.columns].mean(axis=1)
        found[LEAK, target.name] = Estimate.ratio(leak, flow.steps, SHARE)
        into = flow.share_sums[:, :, target.columns].mean(axis=2)
        for name, rows in sources:
            found[name, target.name] = Estimate.ratio(into[:, rows].sum(axis=1), flow.steps, SHARE)
    return found


@dataclass(frozen=True)
class GroupActivity:
    """Hold level and speed of a group of neurons.

    Attributes:
        level: Mean ``|v|`` over neurons, time steps and sequences.
        speed: Mean ``|dv| / dt``, per unit of ``time_delta``, or per time step without it; NaN
            where nothing could be compared.
        level_estimate: ``level`` as an estimate over sequences.
        speed_estimate: ``speed`` as an estimate over sequences.
    """

    level: float
    speed: float
    level_estimate: Estimate
    speed_estimate: Estimate


def group_activity(
    states: FloatArray,
    groups: Sequence[NeuronGroup],
    *,
    time_delta: FloatArray | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> dict[str, GroupActivity]:
    """Return level and speed of each group.

    Args:
        states: ``(S, T, H)``, in the order of time.
        groups: The neurons of each group.
        time_delta: ``(S, T)``, the elapsed time before each time step.
        mask: ``(S, T)``, true at real time steps.

    Returns:
        Level and speed by the group's name, without groups whose states are never finite.
    """
    real = np.ones(states.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    dt = np.ones(states.shape[:2]) if time_delta is None else np.asarray(time_delta, np.float64)
    found = {}
    for group in groups:
        h = states[..., group.columns].astype(np.float64)
        use = real & np.isfinite(h).all(axis=2)
        pairs = use[:, 1:] & use[:, :-1] & (dt[:, 1:] > 0)
        if not use.any() or not len(group.columns):
            continue
        moved = np.abs(h[:, 1:][pairs] - h[:, :-1][pairs]) / dt[:, 1:][pairs][:, None]
        found[group.name] = GroupActivity(
            level=float(np.abs(h[use]).mean()),
            speed=float(moved.mean()) if moved.size else float("nan"),
            level_estimate=_mean_estimate(np.nonzero(use)[0], np.abs(h[use]).mean(axis=1), len(h)),
            speed_estimate=_mean_estimate(np.nonzero(pairs)[0], moved.mean(axis=1), len(h)),
        )
    return found


def _mean_estimate(sequence: npt.NDArray[np.intp], values: FloatArray, sequences: int) -> Estimate:
    """Return the mean of ``(N,)`` values of known sequences, as an estimate over these."""
    return Estimate.ratio(
        np.bincount(sequence, weights=values, minlength=sequences),
        np.bincount(sequence, minlength=sequences),
        SIZE,
    )


def group_attribution(
    attributed: FloatArray, groups: Sequence[NeuronGroup]
) -> tuple[dict[str, Estimate], int]:
    """Return the share of each group in the mean absolute attribution of states.

    Args:
        attributed: ``(S, T, H)``, attribution to each state; sequences that are not finite are
            skipped.
        groups: The neurons of each group.

    Returns:
        The shares by the group's name, empty where nothing is attributed to any state, and the
        number of sequences that count.
    """
    size = _sizes(attributed)
    parts = {group.name: size[:, group.columns].sum(axis=1) for group in groups}
    whole = sum(parts.values(), np.zeros(len(size)))
    if not whole.sum() > 0:
        return {}, len(size)
    shares = {name: Estimate.ratio(part, whole, SHARE) for name, part in parts.items()}
    return shares, len(size)


def neuron_attribution(attributed: FloatArray) -> FloatArray | None:
    """Return the share of each neuron in the mean absolute attribution of states.

    Those of a group sum to its share of :func:`group_attribution`.

    Args:
        attributed: ``(S, T, H)``, attribution to each state; sequences that are not finite are
            skipped.

    Returns:
        ``(H,)``, or None where nothing is attributed to any state.
    """
    size = _sizes(attributed).sum(axis=0)
    whole = float(size.sum())
    return size / whole if whole > 0 else None


def _sizes(attributed: FloatArray) -> npt.NDArray[np.float64]:
    """Return sums over time steps of the absolute attribution, ``(S, H)``, of finite sequences."""
    finite = np.isfinite(attributed).all(axis=(1, 2))
    sizes: npt.NDArray[np.float64] = np.abs(attributed[finite].astype(np.float64)).sum(axis=1)
    return sizes
