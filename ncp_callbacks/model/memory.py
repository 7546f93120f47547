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

    MLX's peak memory is read and never reset, because the user may read it, too. The first pass
    shows the memory per sequence, and the peak before the first snapshot shows that of training. If
    a later pass exceeds the limit, the number of sequences is halved. 256 MB are always allowed.

    Args:
        bounded: False to bound nothing.

    Attributes:
        per_sequence: Bytes that a pass needs for each sequence; None if unknown.
    """

    def __init__(self, *, bounded: bool) -> None:
        self._bounded = bounded
        self.per_sequence: float | None = None
        self._limit: int | None = None

    @contextlib.contextmanager
    def measure(self, count: int) -> Iterator[None]:
        """Measure the memory of one pass of ``count`` sequences, before training."""
        before, held = mx.get_peak_memory(), mx.get_active_memory()
        yield
        peak = mx.get_peak_memory()
        if peak > before:
            self.per_sequence = (peak - held) / count

    @contextlib.contextmanager
    def bounding(self, runner: ModelRunner, training_peak: int) -> Iterator[None]:
        """Bound an analysis.

        Args:
            runner: The model and the batch.
            training_peak: Peak memory of training so far, in bytes.
        """
        before = mx.get_peak_memory()
        if self._bounded and runner.divisible and self._limit is None:
            self._limit = max(MIN_LIMIT_BYTES, _MAX_RATIO * training_peak)
            self._fit(runner)
        yield
        peak = mx.get_peak_memory()
        if not self._bounded or self._limit is None or peak <= max(before, self._limit):
            return
        # Several variants at once take more than the shared pass, and go first.
        whole = len(runner.held_out)
        if runner.room is not None and runner.room > whole:
            runner.room = max(whole, runner.room // 2)
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
