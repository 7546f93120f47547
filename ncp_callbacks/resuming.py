"""Find what a killed run has left in its directory, and from where it goes on.

    logged = logged_run("runs/cfc-seed0")                   # None: there is no log
    logged.last_step                                        # the last step in it
    state, notes = logged.state_before(91, fingerprint)     # where the training begins with step 91

The training goes on from a checkpoint, which is older than the log as a rule: the state that
belongs to it is that of the last snapshot before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import one_line
from .writers import as_directory
from .writers.kept_states import read_state, state_files

if TYPE_CHECKING:
    from .runs import Run

__all__ = ["LoggedRun", "logged_run"]

_CONDITIONS = {
    "held_out": "the held-out batch",
    "feature_names": "the feature names",
    "target": "the target",
}


def logged_run(log_dir: str | os.PathLike[str]) -> LoggedRun | None:
    """Return what a directory holds of a run, or None where it has no log."""
    from .runs.errors import RunsError
    from .runs.reader import read_run

    directory = as_directory(log_dir)
    try:
        return LoggedRun(directory, read_run(directory))
    except RunsError:
        return None


@dataclass(frozen=True, eq=False)
class LoggedRun:
    """Hold the log of a run that goes on, and find the state that was kept beside it."""

    directory: Path
    run: Run

    @property
    def last_step(self) -> int:
        """Return the last step at which a number was logged, or 0."""
        return max(0, self.run.steps[1]) if self.run.steps else 0

    def loop_points(self, first: int) -> Iterator[tuple[int, str, float]]:
        """Iterate over step, tag and value of the training loop's numbers before a step."""
        from .runs.findings import loop_points

        return (point for point in loop_points(self.run) if point[0] < first)

    def state_before(
        self, first: int, fingerprint: str
    ) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
        """Return the newest state that fits a training that goes on with this step, and notes.

        Args:
            first: The first step that is made now.
            fingerprint: What the run is analysed on now. Where that is something else, no state
                fits, and of a callback whose method is another one its part is left away.
        """
        notes: list[str] = []
        for step, path in state_files(self.directory):
            if step >= first:
                continue
            try:
                state = read_state(path)
                changed = _changed(state, fingerprint)
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                notes.append(
                    f"the state of step {step} can't be read ({one_line(error)}): an older one is "
                    "taken"
                )
                continue
            if changed is not None:
                notes.append(
                    f"{changed} differs from that of step {step}: the run goes on in the same log, "
                    "and its analyses begin anew. Pass the same one, for example by a fixed seed, "
                    "or another log_dir"
                )
                return None, tuple(notes)
            return state, tuple(notes)
        if self.run.steps is not None and self.run.steps[0] < first:
            notes.append(
                f"no state of a snapshot before step {first} is kept beside the log: references, "
                "changes and limits of axes begin anew"
            )
        return None, tuple(notes)


def _changed(state: dict[str, Any], fingerprint: str) -> str | None:
    """Return what a state was made on that is something else now; leave other methods' parts away.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: The state holds no fingerprint.
    """
    before: Mapping[str, Any] = json.loads(state["fingerprint"])
    now: Mapping[str, Any] = json.loads(fingerprint)
    for key, name in _CONDITIONS.items():
        if before.get(key) != now[key]:
            return name
    methods = now["method"]
    state["callbacks"] = {
        name: part
        for name, part in state["callbacks"].items()
        if before["method"].get(name) == methods.get(name)
    }
    return None
