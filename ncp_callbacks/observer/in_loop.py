"""Run an observer in the training loop's thread."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ..model.random_states import random_states, restore_random_states
from .observer import Analysis, Observer, Request

__all__ = ["InLoopObserver"]

_USED_BY_ANALYSES = ("scipy.special", "scipy.stats", "sklearn.decomposition")


class InLoopObserver:
    """Analyses each snapshot at once, while the loop waits.

    Args:
        observer: What analyses.
        deliver: Called with each analysis.
        states: Let each analysis have the state of the callbacks as of it.
    """

    def __init__(
        self, observer: Observer, deliver: Callable[[Analysis], None], *, states: bool = False
    ) -> None:
        # Analyses import them where they are used. The first snapshot is not to wait for that.
        for name in _USED_BY_ANALYSES:
            importlib.import_module(name)
        self._observer, self._deliver, self._states = observer, deliver, states

    def submit(self, request: Request) -> bool:
        """Analyse a snapshot and deliver what came of it; return True, as nothing is dropped."""
        states = random_states()
        try:
            analysis = self._observer.analyse(request)
        except BaseException:
            # An interrupt may have come while the analysis cleaned up.
            restore_random_states(states)
            raise
        finally:
            self._observer.runner.restore_process()
        if self._states:
            analysis.state = self._observer.state()
        self._deliver(analysis)
        return True

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs of each callback, by name."""
        return self._observer.state()

    @property
    def known_state(self) -> dict[str, Any]:
        """What a resumed run needs, as of the last analysis."""
        return self._observer.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Give the callbacks what :meth:`state` returned."""
        self._observer.load_state(state)

    def wait(self, timeout: float | None = None) -> int:
        """Return how many snapshots still wait: none ever do."""
        return 0

    def close(self, timeout: float | None = None) -> int:
        """Put the process back to how it was; return how many snapshots were dropped."""
        self._observer.runner.restore_process()
        return 0
