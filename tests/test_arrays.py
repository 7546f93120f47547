"""Arrays between numpy and MLX."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ncp_callbacks.arrays import to_mlx

DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3)])
def test_an_array_is_that_of_mlx(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.arange(1, 1 + int(np.prod(shape))).reshape(shape).astype(dtype)
    found, expected = to_mlx(values), mx.array(values)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(np.array(found), np.array(expected))


@pytest.mark.parametrize(
    "values",
    [np.arange(4)[::-1], np.arange(4, dtype=">f4"), np.arange(12.0).reshape(3, 4).T[:, ::2]],
    ids=["backwards", "other byte order", "strides"],
)
def test_views_hold_the_same_numbers(values: Any) -> None:
    assert to_mlx(values).tolist() == values.tolist()


def test_later_changes_do_not_reach_mlx() -> None:
    values = np.arange(4, dtype=np.float32)
    found = to_mlx(values)
    values[0] = 9
    assert found.tolist() == [0, 1, 2, 3]


def test_what_a_signal_handler_raises_meanwhile_is_not_dropped() -> None:
    fired = caught = 0

    def ring(*_: object) -> None:
        nonlocal fired
        fired += 1
        raise TimeoutError

    values, chance = np.ones((2, 16, 12, 3), np.float32), random.Random(0)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            known = fired
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 1e-3))
                while fired == known:
                    to_mlx(values)
            except TimeoutError:
                caught += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert fired == caught > 100
