"""Assign calls to time steps, from evidence of which call reads which time step.

An order says which call belongs to which time step, for each sequence. It is accepted if it
explains every time step that was asked about, at two calls or more of a sequence, and no other
order does so as well. A call that reads another time step than its own in one place only is no
evidence: a decoder may start from the last observation. Neither is a time step that many calls
read, more than half as many as a sequence has real time steps: a decoder may attend to all of them,
and a model may standardise them together. It must be explained all the same, but it doesn't decide
between orders.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Fit", "Mask", "Order", "Steps", "asked_steps", "calls_of_steps", "fit_order"]

Mask: TypeAlias = "npt.NDArray[np.bool_]"
Steps: TypeAlias = "npt.NDArray[np.intp]"


class Order(enum.Enum):
    """List the orders in which calls may run over the time steps."""

    FORWARD = "forward"
    """From the first time step to the last."""
    BACKWARD = "backward"
    """From the last time step to the first."""
    BACKWARD_WITHIN = "backward within the real steps"
    """Backward from each sequence's last real step to its first; padding keeps its place."""
    SHIFTED = "forward from the first real step"
    """Forward, beginning at each sequence's first real step."""


@dataclass(frozen=True)
class Fit:
    """Hold an order that explains the evidence.

    Attributes:
        order: The order.
        shift: Number of calls between the call of a time step and the call that reads its input:
            above 0 if inputs are read later.
    """

    order: Order
    shift: int


def _first_and_end(mask: Mask) -> tuple[Steps, Steps]:
    """Return the first real time step of each sequence, and the one after its last, ``(B, 1)``."""
    first = np.argmax(mask, axis=1)[:, None]
    return first, mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)[:, None]


def calls_of_steps(order: Order, mask: Mask) -> Steps:
    """Return ``(B, T)``, the index of the call that belongs to each time step.

    Args:
        order: The order.
        mask: ``(B, T)``, true at real time steps.
    """
    batch, total = mask.shape
    steps: Steps = np.broadcast_to(np.arange(total), (batch, total))
    first, end = _first_and_end(mask)
    calls: Steps = steps
    if order is Order.BACKWARD:
        calls = total - 1 - steps
    elif order is Order.BACKWARD_WITHIN:
        calls = np.where((first <= steps) & (steps < end), first + end - 1 - steps, steps)
    elif order is Order.SHIFTED:
        calls = (steps - first) % total
    return calls


def asked_steps(mask: Mask) -> Steps:
    """Return ``(P, B)``, the time steps to ask about in each sequence.

    They are the first two, the last two and the middle one of the real time steps.
    """
    first, end = (edge[:, 0] for edge in _first_and_end(mask))
    last = end - 1
    rows = [first, last, first + 1, last - 1, (first + last) // 2]
    return np.unique(np.clip(rows, first, last), axis=0)


def fit_order(
    asked: Steps, hits: Mask, mask: Mask, *, whole: bool = False, exact: bool = False
) -> Fit | None:
    """Return the order that explains which calls read the time steps asked about, or None.

    Args:
        asked: ``(P, B)``, time steps.
        hits: ``(P, B, N)``, true where call ``n`` reads the time step asked about.
        mask: ``(B, T)``, true at real time steps.
        whole: True to accept only shifts with a call for each time step.
        exact: True to accept no shift, and only evidence from more than half of the time steps.
    """
    count, total = hits.shape[2], mask.shape[1]
    if total == 1:
        return Fit(Order.FORWARD, 0) if count == 1 else None
    read = hits.any(axis=2)
    several = np.maximum(1, count * mask.sum(axis=1) // (2 * total))[None]
    evidence, alone = read & (hits.sum(axis=2) <= several), hits.sum(axis=2) == 1
    shifts = range(count - total + 1) if whole else range(1 - total, count)
    sequences = np.arange(hits.shape[1])[None]
    found: list[tuple[int, Fit, bool]] = []
    seen: list[Steps] = []
    for order in Order:
        calls = calls_of_steps(order, mask)
        if any(np.array_equal(calls, other) for other in seen):
            continue
        seen.append(calls)
        wanted = calls[sequences, asked]
        for shift in [0] if exact else shifts:
            at = wanted + shift
            within = (at >= 0) & (at < count)
            at_own = np.take_along_axis(hits, np.clip(at, 0, count - 1)[..., None], axis=2)
            explained, used = at_own[..., 0], evidence & within
            if (
                2 * used.sum() > (read if exact else evidence).sum()
                and explained[used].all()
                and (whole or 2 * abs(shift) < total or (alone | ~used).all())
            ):
                # One call alone, or one of each sequence, has many explanations.
                known = any(
                    len(np.unique(of_sequence[own])) > 1
                    for of_sequence, own in zip(at.T, used.T, strict=True)
                )
                known &= bool(explained[read & within].all())
                found.append((int(used.sum()), Fit(order, shift), known))
    most = max((number for number, _, _ in found), default=0)
    best = [(fit, known) for number, fit, known in found if number == most]
    if len({fit.order for fit, _ in best}) != 1:
        return None
    fits = [fit for fit, known in best if known]
    return min(fits, key=lambda fit: abs(fit.shift), default=None)
