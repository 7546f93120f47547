"""Tell where an attribution is not to be trusted, in the place where it is logged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...attribution import Agreement, AttributionMethod, TemporalImportance
from ...attribution.removal import ELAPSED_TIME
from ...records import Note, Scalar

__all__ = ["SCALARS", "Disputes", "completeness", "mostly_time"]

SCALARS = {
    "completeness_error": "Difference between the sum of a sequence's attributions and the change "
    "of its target from the baseline; 99th percentile over sequences, relative to the RMS change "
    "of the target",
    "incomplete": "Share of sequences whose completeness error is above 5 %",
    "disagreement": "Part of the whole that the attribution and the removal of features attribute "
    "to different features: 0 if they agree, 1 if they have nothing in common. It is larger with "
    "few sequences, so it has no CI",
    "effective_sequences": "Effective number of sequences that carry attribution and removal, "
    "(sum w)^2 / sum w^2 of their strengths w: if it is far below their number, few of them "
    "decide",
    "disputed": "Number of features whose shares by attribution and by removal differ by 10 % of "
    "the whole or more, and beyond chance",
}
# Share of incomplete sequences that is no reason for a note.
_TOLERATED = 0.1
# Of elapsed time in the whole, from which shares of features say little.
_MOSTLY = 0.8


def completeness(
    result: TemporalImportance,
    group: str,
    method: AttributionMethod,
    disputed: bool | None = None,
) -> Iterator[Scalar | Note]:
    """Yield the completeness error, and a note where it is large in many sequences.

    Args:
        result: The summary of the attribution.
        group: First part of the tags.
        method: The method.
        disputed: True if removal disagrees on a share, False if it doesn't; None if it is unknown.
    """
    if result.error is None:
        return
    # Infinite where targets didn't change and yet something was attributed.
    error = result.error[~np.isnan(result.error)].astype(np.float64)
    if not error.size:
        return
    if np.isfinite(error).all():
        percentile = float(np.quantile(error, 0.99))
        yield Scalar(f"{group}/completeness_error", percentile, SCALARS["completeness_error"])
    above = float((error > 0.05).mean())
    yield Scalar(f"{group}/incomplete", above, SCALARS["incomplete"], place="nonzero")
    if above <= _TOLERATED:
        return
    what = (
        f"{group}: attributions of more than {_TOLERATED:.0%} of the sequences don't sum to the "
        f"change of their target within 5 %; {group}/incomplete is their share. "
    )
    if disputed is None:
        yield Note(f"{what}{method.incomplete_fix}. Until then don't trust the map and its shares")
    elif disputed:
        yield Note(
            f"{what}{method.incomplete_fix}. Removal disagrees on shares, too, as it does where "
            "the target jumps: don't trust this map and its shares"
        )
    else:
        yield Note(
            f"{what}Shares of features agree with removal within 10 % of the whole, see "
            f"{group}/disagreement; maps of single sequences may be wrong. {method.incomplete_fix}"
        )


def mostly_time(result: TemporalImportance, group: str) -> Iterator[Note]:
    """Yield a note where nearly everything is attributed to elapsed times."""
    share = result.time_delta_share
    if share is not None and share >= _MOSTLY:
        yield Note(
            f"{group}: nearly all is attributed to elapsed times, see {group}/time_share. Shares "
            "of features are shares of the little that is left to the inputs, not of the target"
        )


class Disputes:
    """Report where attribution and removal disagree, each feature once.

    Args:
        every: Snapshots from one comparison to the next, beginning with the first; 0 for none.

    Attributes:
        removed: Shares, in those of all features, by removal of the features on which the last
            comparison disagreed, the largest difference first; None before the first comparison.
        step: Training step of the last comparison; None before the first.
    """

    def __init__(self, every: int) -> None:
        self._every, self._snapshots = every, 0
        self._reported: dict[str, str] = {}
        self.removed: dict[str, float] | None = None
        self.step: int | None = None

    def compare_always(self) -> None:
        """Compare at each snapshot, if at all."""
        self._every = min(self._every, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the notes by feature, and what the last comparison found."""
        return {
            "snapshots": self._snapshots,
            "reported": dict(self._reported),
            "removed": None if self.removed is None else dict(self.removed),
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._snapshots = int(state["snapshots"])
        self._reported = {str(name): str(note) for name, note in state["reported"].items()}
        removed = state["removed"]
        self.removed = None if removed is None else {str(n): float(v) for n, v in removed.items()}
        self.step = None if state["step"] is None else int(state["step"])

    @property
    def disputed(self) -> bool | None:
        """Return whether the last comparison disagreed; None before the first."""
        return None if self.removed is None else bool(self.removed)

    @property
    def in_picture(self) -> dict[str, Any]:
        """Return what the picture of the last step compared names, as its arguments."""
        return {"removed": self.removed, "removed_at": self.step}

    def compare(self, step: int, make: Callable[[], Agreement | None]) -> Agreement | None:
        """Return the comparison of this snapshot; None if it has none.

        Args:
            step: Training step.
            make: Compares the two views, which costs passes.
        """
        self._snapshots += 1
        if not self._every or (self._snapshots - 1) % self._every:
            return None
        return self.compare_now(step, make)

    @property
    def skips(self) -> bool:
        """Return whether there are snapshots that aren't compared."""
        return self._every > 1

    @property
    def is_behind(self) -> bool:
        """Return whether the last snapshot wasn't compared."""
        return self.skips and self._snapshots > 0 and (self._snapshots - 1) % self._every > 0

    def compare_now(self, step: int, make: Callable[[], Agreement | None]) -> Agreement | None:
        """Return the comparison of this snapshot, whether it has one or not.

        Args:
            step: Training step.
            make: See :meth:`compare`.
        """
        found = make()
        if found is not None:
            # In parts of all features, as the shares of the map are, and not of elapsed time, too.
            features = np.array([name != ELAPSED_TIME for name in found.names])
            total = float(found.removed[features].sum()) or 1.0
            self.step = step
            self.removed = {found.names[i]: float(found.removed[i]) / total for i in found.disputed}
        return found

    def records(
        self, agreement: Agreement, group: str, method: AttributionMethod
    ) -> Iterator[Scalar | Note]:
        """Yield how far attribution and removal disagree, and notes on disputed features."""
        number = agreement.disagreement
        yield Scalar(
            f"{group}/disagreement",
            number.value,
            SCALARS["disagreement"],
        )
        yield Scalar(
            f"{group}/effective_sequences",
            number.effective_sequences,
            SCALARS["effective_sequences"],
            place="data",
        )
        count = len(agreement.disputed)
        yield Scalar(f"{group}/disputed", count, SCALARS["disputed"], place="data")
        disputed = [agreement.names[i] for i in agreement.disputed]
        new = [name for name in disputed if name not in self._reported]
        if new:
            self._reported |= dict.fromkeys(new, _note(agreement, new, group, method))
        for message in dict.fromkeys(self._reported[name] for name in disputed):
            yield Note(message)


def _note(agreement: Agreement, names: Sequence[str], group: str, method: AttributionMethod) -> str:
    shares = [
        f"{name} {float(agreement.attributed[i]):.0%} against {float(agreement.removed[i]):.0%}"
        for i, name in enumerate(agreement.names)
        if name in names
    ]
    return (
        f"{group}: {method.label} and removal (replacing a feature by that of other sequences) "
        f"disagree beyond chance on shares: {', '.join(shares)}. Gradients mislead where the "
        "target jumps, saturates or oscillates. Removal misleads where features replace each other "
        "or cancel over time. A baseline= other than the mean asks another question. Don't trust "
        "these shares until you know which it is: where gradients mislead, removal is right, and "
        'method="occlusion" makes a map without gradients. See '
        f"{group}/disagreement"
    )
