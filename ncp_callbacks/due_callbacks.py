"""Tell which callbacks are due at a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from .callback import Callback
from .scheduling import Schedule, every
from .signal_handlers import raised_by_signal_handler

__all__ = ["DueCallbacks"]


class DueCallbacks:
    """Asks the schedules of callbacks, each once a step.

    Args:
        callbacks: What is to be analysed.
        default: Schedule of callbacks that have none of their own.
        train: Schedule of the loop's own numbers; None: they are due whenever a schedule of the
            callbacks is.
        disabled: Names of callbacks that are never due; names are added where a schedule fails.
        fail: Called with a message and the error of a schedule that failed.
        raise_errors: Raise errors of schedules instead.

    Attributes:
        is_begun: Whether the schedules know which step comes before those that are asked about.
    """

    def __init__(
        self,
        callbacks: Iterable[Callback],
        default: Schedule,
        train: Schedule | None,
        disabled: set[str],
        fail: Callable[[str, BaseException], None],
        *,
        raise_errors: bool,
    ) -> None:
        self._groups = _grouped(callbacks, default)
        self._train = train
        self._disabled = disabled
        self._fail, self._raise_errors = fail, raise_errors
        self._occasions: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self.is_begun = False

    def starts_after(self, step: int) -> None:
        """Tell the schedules which step comes before the first one that they are asked about."""
        self.is_begun = True
        for schedule in (*(s for s, _ in self._groups), self._train):
            if schedule is not None:
                schedule.starts_after(step)

    def at(self, step: int, *, after: int | None = None) -> tuple[list[Callback], bool]:
        """Return the callbacks that are due, and whether the loop's own numbers are.

        Args:
            step: The step.
            after: The last step before it, if that is known.
        """
        if not self.is_begun and after is not None:
            self.starts_after(after)
        self.is_begun = True
        return self._ask(step, self._groups, self._train)

    def catch_up(self, steps: Iterable[int]) -> tuple[list[int], list[int]]:
        """Count steps that were made before an interruption, of which the log tells nothing.

        Schedules that more than the step decides aren't asked.

        Args:
            steps: They increase.

        Returns:
            The steps at which callbacks were due, and those at which the loop's own numbers were.
        """
        groups = [(schedule, group) for schedule, group in self._groups if schedule.by_step]
        train = self._train if self._train is None or self._train.by_step else ~every(steps=1)
        answers = [(step, *self._ask(step, groups, train)) for step in steps]
        return [step for step, due, _ in answers if due], [step for step, _, due in answers if due]

    def _ask(
        self, step: int, groups: Sequence[tuple[Schedule, list[Callback]]], train: Schedule | None
    ) -> tuple[list[Callback], bool]:
        fired = [group for schedule, group in groups if self._is_due(schedule, step)]
        due = [
            callback
            for group in fired
            for callback in group
            if callback.name not in self._disabled and self._has_turn(callback)
        ]
        self._last |= {callback.name: step for callback in due}
        return due, self._is_due(train, step) if train else bool(fired)

    def never_due(self) -> dict[str, list[Callback]]:
        """Return the callbacks that no step was due for though some should be, by schedule."""
        found: dict[str, list[Callback]] = {}
        for schedule, group in self._groups:
            left = [c for c in group if c.name not in {*self._disabled, *self._occasions}]
            if left and schedule.covers_ends:
                found.setdefault(repr(schedule), []).extend(left)
        return found

    def behind(self, step: int) -> list[Callback]:
        """Return the callbacks that skip snapshots, and have skipped those before the last step."""
        return [
            callback
            for _, group in self._groups
            for callback in group
            if callback.every_nth > 1
            and callback.name in self._occasions
            and callback.name not in self._disabled
            and self._last.get(callback.name, step - 1) < step
        ]

    def _has_turn(self, callback: Callback) -> bool:
        """Tell if this occasion is one of those that the callback takes."""
        number = self._occasions.get(callback.name, 0)
        self._occasions[callback.name] = number + 1
        return number % callback.every_nth == 0

    def _is_due(self, schedule: Schedule, step: int) -> bool:
        try:
            return schedule(step)
        except Exception as error:
            if self._raise_errors or raised_by_signal_handler(error):
                raise
            stopped = [c.name for s, group in self._groups if s is schedule for c in group]
            self._fail(
                f"the schedule {schedule!r} failed at step {step}, which stops "
                f"{', '.join(stopped) or 'train/*'}",
                error,
            )
            self._disabled |= set(stopped)
            self._groups = [(s, group) for s, group in self._groups if s is not schedule]
            if schedule is self._train:
                self._train = ~every(steps=1)
            return False

    def state_dict(self) -> dict[str, int]:
        """Return how often each callback's schedule was due."""
        return dict(self._occasions)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self._occasions = {str(name): int(count) for name, count in state.items()}


def _grouped(
    callbacks: Iterable[Callback], default: Schedule
) -> list[tuple[Schedule, list[Callback]]]:
    """Group callbacks by schedule, so that one that counts time is asked once a step."""
    groups: dict[int, tuple[Schedule, list[Callback]]] = {}
    for callback in callbacks:
        schedule = callback.every or default
        groups.setdefault(id(schedule), (schedule, []))[1].append(callback)
    # A schedule without callbacks still decides when the loop's own numbers are logged.
    return list(groups.values()) or [(default, [])]
