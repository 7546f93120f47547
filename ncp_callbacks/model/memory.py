"""Keep the memory that a snapshot's passes need within twice that of training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import mlx.core as mx

from .runner import ModelRunner

__all__ = ["Memory"]

_LOG = logging.getLogger("ncp_callbacks")
_MAX_RATIO = 2
# Always allowed, so that small models run the whole batch however little training needs.
MIN_LIMIT_BYTES = 256 << 20


class Memory:
    """Bound the number of sequences in one pass by the memory that training needs.

    In the process of the training loop, MLX's peak memory is read and never reset, because the user
    may read it, too. The first pass shows the memory per sequence, and the peak before the first
    snapshot shows that of training. If a later pass exceeds the limit, the number of sequences is
    halved. 256 MB are always allowed.

    Within the limit, passes hold several variants of the sequences at once, which takes much less
    time for small models. How many there is room for is measured in the shared pass of a snapshot.

    Args:
        bounded: False to bound nothing.
        own_process: True in a process in which nothing but the observer uses MLX. Its peak memory
            is reset, so that what a pass needs is known exactly.

    Attributes:
        per_sequence: Bytes that a pass needs for each sequence; None if unknown.
    """

    def __init__(self, *, bounded: bool, own_process: bool = False) -> None:
        self._bounded, self._own_process = bounded, own_process
        self.per_sequence: float | None = None
        self._limit: int | None = None
        # Largest number of sequences in one pass, variants included, after a pass that took more.
        self._most: int | None = None
        self._peak = 0

    @contextlib.contextmanager
    def measure(self, count: int) -> Iterator[None]:
        """Measure the memory of one pass of ``count`` sequences, before training."""
        before, held = mx.get_peak_memory(), mx.get_active_memory()
        yield
        peak = mx.get_peak_memory()
        if peak > before:
            self.per_sequence = (peak - held) / count

    @contextlib.contextmanager
    def measure_room(self, runner: ModelRunner, count: int) -> Iterator[None]:
        """Measure how many sequences there is room for, by a pass of a snapshot with gradients.

        Where the peak memory can't be reset and doesn't move, it is taken for that of this pass,
        which may have needed less.

        Args:
            runner: The model and the batch.
            count: Number of sequences that run at once.
        """
        self._reset_peak()
        held = mx.get_active_memory()
        yield
        needed = mx.get_peak_memory() - held
        if self._limit is None or not runner.divisible or needed <= 0:
            return
        room = int((self._limit - held) * count / needed)
        if self._most is not None:
            room = min(room, self._most)
        runner.room = max(1, room)

    @contextlib.contextmanager
    def bounding(self, runner: ModelRunner, training_peak: int) -> Iterator[None]:
        """Bound an analysis.

        Args:
            runner: The model and the batch.
            training_peak: Peak memory of training so far, in bytes.
        """
        self._reset_peak()
        self._peak = 0
        before = mx.get_peak_memory()
        if self._bounded and runner.divisible and self._limit is None:
            self._limit = max(MIN_LIMIT_BYTES, _MAX_RATIO * training_peak)
            self._fit(runner)
        yield
        peak = max(self._peak, mx.get_peak_memory())
        if not self._bounded or self._limit is None or peak <= max(before, self._limit):
            return
        # Several variants at once take more than the shared pass, and go first.
        whole = len(runner.held_out)
        if runner.room is not None and runner.room > whole:
            self._most = runner.room = max(whole, runner.room // 2)
            return
        count = runner.max_sequences or whole
        if count > 1:
            runner.max_sequences = count // 2
            _LOG.info(
                "running %d sequences at once took %.0f MB, more than twice as much as training; "
                "running %d from now on",
                count,
                peak / 1e6,
                count // 2,
            )

    def _fit(self, runner: ModelRunner) -> None:
        assert self._limit is not None
        if self.per_sequence is None:
            return
        count = max(1, int((self._limit - mx.get_active_memory()) / self.per_sequence))
        if count < len(runner.held_out):
            runner.max_sequences = count
        runner.room = count

    def _reset_peak(self) -> None:
        if self._own_process:
            self._peak = max(self._peak, mx.get_peak_memory())
            mx.reset_peak_memory()
