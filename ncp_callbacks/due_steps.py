"""Tell from a log which steps were due before an interruption, and what is missing of them.

    due_steps(run, before=31)           # of steps 10, 20 and 30
    analysed_steps(run, before=31)      # [10, 20]: the snapshot of step 30 is lost

The log has a line of each due step, which reaches the disk at once. Snapshots wait for their
analysis, and other records for the next round of writing, so that a process that is killed loses
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .findings.run_findings import DATA, OVERVIEW

if TYPE_CHECKING:
    from .runs import Run

__all__ = ["DUE", "DueStep", "analysed_steps", "due_steps", "what_is_lacking"]

DUE = "_ncp/due"
_MAX_LISTED = 8


@dataclass(frozen=True)
class DueStep:
    """What a log tells of a due step, and of the first two steps of a run.

    Attributes:
        step: The step.
        after: The step that was reported before; None: it is the first one.
        snapshot: Whether a snapshot was taken.
        occasions: How often each callback was due so far.
    """

    step: int
    after: int | None
    snapshot: bool
    occasions: Mapping[str, int]

    def to_json(self) -> str:
        """Return the line that the log gets."""
        return json.dumps(dataclasses.asdict(self))

    @property
    def stride(self) -> int:
        """Return by how much the loop's steps increase."""
        return 1 if self.after is None else max(1, self.step - self.after)


def due_steps(run: Run, before: int) -> list[DueStep]:
    """Return what a log tells of the due steps before a step."""
    found: list[DueStep] = []
    for step, line in sorted(run.texts.get(DUE, {}).items()):
        if step < before:
            with contextlib.suppress(ValueError, TypeError):  # Another version may write others.
                found.append(DueStep(**json.loads(line)))
    return found


def analysed_steps(run: Run, before: int) -> list[int]:
    """Return the steps before a step whose snapshots were analysed."""
    found = {step for step in run.texts.get(DATA, {}) if step < before}
    for tag, points in run.scalars.items():
        if tag.startswith("monitor/seconds/"):
            found.update(step for step in points.steps.tolist() if step < before)
    return sorted(found)


def what_is_lacking(run: Run, first: int, due: Sequence[int], train: Sequence[int]) -> str:
    """Return what a log lacks of steps that aren't made again, or "" where it lacks nothing.

    Args:
        run: The log.
        first: The first step that is made now.
        due: Steps whose snapshots were taken.
        train: Steps that the log tells nothing of, and at which the loop's numbers were due.
    """
    analysed = analysed_steps(run, first)
    judged = [step for step in run.texts.get(DATA, {}) if step < first]
    drawn = [step for step in run.images.get(OVERVIEW, {}) if step < first]
    logged = [
        step
        for tag, points in run.scalars.items()
        if tag.startswith("train/")
        for step in points.steps.tolist()
        if step < first
    ]
    # All come in the order of their steps. What is absent before the last that is there was
    # dropped, and this was reported then.
    parts = {
        "the analysis of": _after(analysed, due),
        # The picture of the findings is the last one that is drawn of each snapshot.
        "pictures of": _after(drawn, judged),
        "the training loop's numbers of": _after(logged, train) if logged else [],
    }
    return _joined([f"{what} {_listed(steps)}" for what, steps in parts.items() if steps])


def _after(there: Sequence[int], expected: Sequence[int]) -> list[int]:
    last = max(there, default=-1)
    return sorted({step for step in expected if step > last})


def _listed(steps: Sequence[int]) -> str:
    """Return increasing steps as text: "step 30", "steps 30 and 40", "steps 30, 40, …, 190"."""
    parts: list[str] = []
    at = 0
    while at < len(steps):
        end = at + 1
        while end < len(steps) and steps[end] - steps[end - 1] == steps[at + 1] - steps[at]:
            end += 1
        if end - at > 3:
            parts.append(f"{steps[at]}, {steps[at + 1]}, …, {steps[end - 1]}")
        else:
            end = at + 1
            parts.append(str(steps[at]))
        at = end
    if len(parts) > _MAX_LISTED:
        parts[_MAX_LISTED - 1 :] = [f"{len(parts) - _MAX_LISTED + 1} more up to {steps[-1]}"]
    return f"step{'s' * (len(steps) > 1)} {_joined(parts)}"


def _joined(parts: Sequence[str]) -> str:
    *others, last = parts or [""]
    return f"{', '.join(others)} and {last}" if others else last
