"""Keeping what a look needs of memory within twice what training needs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import mlx.core as mx

from .runner import ModelRunner

__all__ = ["Memory"]

_LOG = logging.getLogger("ncp_callbacks")
_TIMES = 2
# What nobody misses: small models are looked at whole, however little training needs.
ENOUGH = 256 << 20


class Memory:
    """Watches MLX's peak memory, which it never resets, because the user may be watching it, too.

    What a sequence needs is learnt from the pass of the dry run, and what training needs from the
    peak before the first look. Where that says too little, the first look that needs too much
    halves the number of sequences of the next. 256 MB are always granted.

    Args:
        bounded: Whether to bound anything.
    """

    def __init__(self, *, bounded: bool) -> None:
        self._bounded = bounded
        self.per_sequence: float | None = None
        self._most: int | None = None

    @contextlib.contextmanager
    def of_rows(self, rows: int) -> Iterator[None]:
        """Around one pass of so many sequences, before training."""
        before, held = mx.get_peak_memory(), mx.get_active_memory()
        yield
        peak = mx.get_peak_memory()
        if peak > before:
            self.per_sequence = (peak - held) / rows

    @contextlib.contextmanager
    def bounding(self, runner: ModelRunner, training_peak: int) -> Iterator[None]:
        """Bound an analysis, beside a training that has used so many bytes so far."""
        before = mx.get_peak_memory()
        if self._bounded and runner.divisible and self._most is None:
            self._most = max(ENOUGH, _TIMES * training_peak)
            self._fit(runner)
        yield
        peak = mx.get_peak_memory()
        if not self._bounded or self._most is None or peak <= max(before, self._most):
            return
        rows = runner.max_sequences or len(runner.held_out)
        if rows > 1:
            runner.max_sequences = rows // 2
            _LOG.info(
                "looking at %d sequences at once took %.0f MB, more than twice what training did; "
                "from now on %d",
                rows,
                peak / 1e6,
                rows // 2,
            )

    def _fit(self, runner: ModelRunner) -> None:
        assert self._most is not None
        if self.per_sequence is None:
            return
        rows = max(1, int((self._most - mx.get_active_memory()) / self.per_sequence))
        if rows < len(runner.held_out):
            runner.max_sequences = rows
