"""What the monitor costs: measured live, bounded, chosen by name."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable
from typing import ClassVar
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ncp_callbacks as ncp
from ncp_callbacks.model import Memory, ModelRunner
from ncp_callbacks.model import memory as memory_module
from ncp_callbacks.models import CfC
from ncp_callbacks.overhead import Overhead

B, T, F = 6, 5, 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(F, 8, backbone_units=6), nn.Linear(8, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


class Counting(Net):
    """Counts the sequences of each call."""

    batches: ClassVar[list[int]] = []

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        self.batches.append(len(x))
        return super().__call__(x, time_delta)


class Slow(ncp.Callback):
    """Takes its time."""

    def __init__(self, seconds: float, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.seconds, self.steps = seconds, list[int]()

    def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
        if observation.step:
            time.sleep(self.seconds)
            self.steps.append(observation.step)
        return []


def held_out(batch: int = B) -> ncp.HeldOutBatch:
    rng = np.random.default_rng(0)
    return ncp.HeldOutBatch(
        rng.standard_normal((batch, T, F)).astype(np.float32), rng.uniform(0.5, 2, (batch, T))
    )


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(
    st.floats(0.005, 0.5),
    st.lists(st.tuples(st.floats(0.001, 2.0), st.floats(0.001, 3.0)), min_size=5, max_size=200),
)
def test_the_share_of_any_run_is_bounded(most: float, steps: list[tuple[float, float]]) -> None:
    clock = Clock()
    overhead = Overhead(most, clock)
    start, last = clock.now, 0.0
    for step, took in steps:
        clock.now += step
        if overhead.affords():
            with overhead.occupying():
                clock.now += took
            last = took
    # All snapshots but the last are paid for by the time until it.
    assert overhead.seconds - last <= most * (clock.now - start) * (1 + 1e-6)
    assert overhead.snapshots >= 1
    assert overhead.snapshots + overhead.skipped == len(steps)


def test_snapshots_that_are_cheap_enough_are_all_taken() -> None:
    clock = Clock()
    overhead = Overhead(0.02, clock)
    for _ in range(50):
        clock.now += 1.0
        assert overhead.affords()
        with overhead.occupying():
            clock.now += 0.02
    assert overhead.skipped == 0


def test_what_is_logged_of_a_snapshot() -> None:
    clock = Clock()
    overhead = Overhead(0.5, clock)
    for seconds in (1.0, 2.0):
        clock.now += 6.0
        assert overhead.affords()
        with overhead.occupying():
            clock.now += seconds
    logged = {r.tag: r.value for r in overhead.records() if isinstance(r, ncp.Scalar)}
    assert logged == pytest.approx(
        {
            "monitor/loop_seconds": 2.0,
            "monitor/share": 2.0 / 8.0,
            "monitor/skipped_snapshots": 0,
        }
    )
    assert overhead.share == pytest.approx(3.0 / 9.0)


def test_seconds_of_callbacks_and_their_sum() -> None:
    writer, slow = ncp.MemoryWriter(), Slow(0.05)
    with ncp.Monitor(Net(), held_out(), [slow], writer=writer, every=1) as monitor:
        for step in (1, 2):
            start = time.perf_counter()
            monitor.on_step_end(step)
            took = time.perf_counter() - start
    parts = [writer.scalars(f"monitor/{part}") for part in ("seconds/slow", "pass_seconds/shared")]
    assert [step for step, _ in parts[0]] == [1, 2]
    assert all(0.05 <= seconds < 1 for _, seconds in parts[0])
    (_, _), (_, loop) = writer.scalars("monitor/loop_seconds")
    # The rest is reading the model and writing.
    assert sum(curve[-1][1] for curve in parts) < loop <= took
    assert loop == pytest.approx(took, rel=0.2)
    ((step, share),) = writer.scalars("monitor/share")
    assert step == 2
    assert 0.5 < share <= 1.0  # Nothing happened between the snapshots.


def test_what_training_left_to_compute_is_not_taken_for_the_monitors_work() -> None:
    """MLX computes when it must: the work of a training step must not count as the monitor's."""
    model, writer = Net(), ncp.MemoryWriter()
    with ncp.Monitor(model, held_out(), [Slow(0.0)], writer=writer, every=1) as monitor:
        pending = model.head.weight + 1.0
        model.head.weight = pending
        seen = []

        def occupying() -> object:
            seen.append([list(call.args[0]) for call in evaluated.call_args_list])
            return Overhead.occupying(monitor._overhead)

        with (
            mock.patch.object(monitor._overhead, "occupying", occupying),
            mock.patch.object(mx, "eval", wraps=mx.eval) as evaluated,
        ):
            monitor.on_step_end(1)
    # Before the clock starts, all arrays of the model have been evaluated once.
    parameters = [array for _, array in nn.utils.tree_flatten(model.parameters())]
    ((found,),) = seen
    assert {id(array) for array in parameters} <= {id(array) for array in found}
    assert any(array is pending for array in found)


def test_max_overhead_skips_snapshots_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    writer, slow = ncp.MemoryWriter(), Slow(0.05)
    with ncp.Monitor(
        Net(), held_out(), [slow], writer=writer, every=10, train_every=10, max_overhead=0.2
    ) as monitor:
        start = time.monotonic()
        for step in range(1, 101):
            time.sleep(0.01)
            monitor.on_step_end(step, loss=1.0)
        wall = time.monotonic() - start
    assert slow.steps[0] == 10
    assert all(step % 10 == 0 for step in slow.steps)
    assert 0.05 * (len(slow.steps) - 1) <= 0.2 * wall
    assert len(slow.steps) < 10
    assert writer.scalars("monitor/skipped_snapshots")[-1][1] > 0
    assert len([n for n in monitor.notes if "max_overhead" in n]) == 1
    # What the user logs is logged all the same.
    assert [step for step, _ in writer.scalars("train/loss")] == list(range(10, 101, 10))


def test_without_a_bound_every_snapshot_is_taken_and_a_large_share_is_reported() -> None:
    writer, slow = ncp.MemoryWriter(), Slow(0.0)
    clock = Clock()
    with ncp.Monitor(Net(), held_out(), [slow], writer=writer, every=1) as monitor:
        monitor._overhead._clock = clock
        real = slow.measure

        def measure(observation: ncp.Observation) -> Iterable[ncp.Record]:
            clock.now += 1.0
            return real(observation)

        slow.measure = measure  # type: ignore[method-assign]
        for step in range(1, 101):
            clock.now += 1.0
            monitor.on_step_end(step)
            spoken = [n for n in monitor.notes if "of the wall time" in n]
            # Once they have gone on for a minute: the first snapshot ends a second after it began.
            assert len(spoken) == (1 if 2 * step - 1 > 60 else 0), step
    assert slow.steps == list(range(1, 101))
    assert "51% of the wall time" in spoken[0]


@pytest.mark.parametrize("bad", [0, -1, 1.5, 2])
def test_shares_that_are_none(bad: float) -> None:
    with pytest.raises(ValueError, match=f"max_overhead={bad}.*0.02"):
        ncp.Monitor(Net(), held_out(), writer=ncp.MemoryWriter(), max_overhead=bad)


# --- sets by name


def test_sets_by_name() -> None:
    def names(which: str | None) -> list[str]:
        with ncp.Monitor(Net(), held_out(), which, writer=ncp.MemoryWriter()) as monitor:
            return [c.name for c in monitor.callbacks]

    standard = ["attribution", "removal", "time_delta", "transitions", "hidden", "backbone"]
    assert names(None) == names("standard") == standard
    assert names("light") == ["attribution", "transitions"]
    assert set(standard) < set(names("full"))
    with pytest.raises(ValueError, match="'heavy' is unknown: pass 'light', 'standard', 'full'"):
        ncp.Monitor(Net(), held_out(), "heavy", writer=ncp.MemoryWriter())


def test_what_is_expensive_takes_every_tenth_occasion_only() -> None:
    often, seldom = Slow(0.0, name="often"), Slow(0.0, name="seldom")
    seldom.every_nth = 10
    with ncp.Monitor(
        Net(), held_out(), [often, seldom], writer=ncp.MemoryWriter(), every=2
    ) as monitor:
        for step in range(1, 27):
            monitor.on_step_end(step)
        state = monitor.state_dict()
    assert often.steps == list(range(2, 27, 2))
    assert seldom.steps == [2, 22, 26]  # and at the end
    resumed = Slow(0.0, name="seldom")
    resumed.every_nth = 10
    again = ncp.Monitor(Net(), held_out(), [resumed], writer=ncp.MemoryWriter(), every=2)
    again.load_state_dict(state)
    with again as monitor:
        for step in range(27, 50):
            monitor.on_step_end(step)
    assert resumed.steps == [42, 49]


# --- memory


def test_an_analysis_needs_no_more_than_twice_the_memory_of_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the peak memory as it is read from MLX replaced by a model of it."""
    runner = ModelRunner(Net(), held_out(64))
    memory = Memory(bounded=True)
    peak, per_row = 1_000, 100

    def analyse() -> int:
        nonlocal peak
        rows = runner.max_sequences or 64
        needed = 500 + rows * per_row
        peak = max(peak, needed)
        return rows

    with (
        mock.patch.object(memory_module, "MIN_LIMIT_BYTES", 0),
        mock.patch.object(mx, "get_peak_memory", side_effect=lambda: peak),
        mock.patch.object(mx, "get_active_memory", return_value=500),
    ):
        with memory.measure(2):
            peak = 1_000 + 2 * per_row  # The dry run: 700 beyond what is held, by two sequences.
        peak = 2_000  # Training.
        with memory.bounding(runner, training_peak=peak):
            assert analyse() == 10  # (2 * 2000 - 500) / 350, although a sequence takes but 100.
        assert peak <= 2 * 2_000

        # A dry run that says nothing: the first analysis shows it, the next are smaller.
        runner, memory, peak = ModelRunner(Net(), held_out(64)), Memory(bounded=True), 2_000
        with caplog.at_level(logging.INFO):
            seen = []
            for _ in range(3):
                with memory.bounding(runner, training_peak=peak):
                    seen.append(analyse())
        assert seen == [64, 32, 32]
        assert "running 32 from now on" in caplog.text

        # One that was chosen is kept.
        runner = ModelRunner(Net(), held_out(64), max_sequences=48)
        memory, peak = Memory(bounded=False), 100
        for _ in range(2):
            with memory.bounding(runner, training_peak=peak):
                assert analyse() == 48


def test_small_models_are_run_whole() -> None:
    """Whatever the estimate says of an analysis that comes before any training."""
    runner, memory = ModelRunner(Net(), held_out(64)), Memory(bounded=True)
    with memory.measure(2):
        mx.eval(mx.random.normal((512, 512)) @ mx.random.normal((512, 512)))
    with memory.bounding(runner, training_peak=0):
        pass
    assert runner.max_sequences is None


@pytest.mark.parametrize("background", [True, False])
def test_the_loop_s_peak_memory_is_read_and_never_reset(background: bool) -> None:
    options = {"writer": ncp.MemoryWriter(), "every": 1, "background": background}
    with mock.patch.object(mx, "reset_peak_memory") as reset:
        with ncp.Monitor(Net(), held_out(), **options) as monitor:
            monitor.on_step_end(1)
        assert not reset.called


class _Memory:
    """Stand for MLX's memory: 500 bytes are held, and a pass takes 100 for each sequence."""

    def __init__(self, peak: int) -> None:
        self.peak = peak

    def run(self, sequences: int) -> None:
        self.peak = max(self.peak, 500 + 100 * sequences)

    def reset(self) -> None:
        self.peak = 500

    def patched(self) -> contextlib.ExitStack:
        with contextlib.ExitStack() as stack:
            for name, fake in (
                ("get_peak_memory", lambda: self.peak),
                ("get_active_memory", lambda: 500),
                ("reset_peak_memory", self.reset),
            ):
                stack.enter_context(mock.patch.object(mx, name, side_effect=fake))
            stack.enter_context(mock.patch.object(memory_module, "MIN_LIMIT_BYTES", 0))
            return stack.pop_all()


@pytest.mark.parametrize(
    ("own_process", "room"),
    [
        # Twice the 4,100 bytes of training, less what is held, hold 77 sequences of 100 bytes.
        (True, 77),
        # The peak is that of training: 16 sequences may have taken the 3,600 bytes beyond 500.
        (False, 34),
    ],
)
def test_passes_hold_as_many_variants_as_the_memory_of_training_has_room_for(
    own_process: bool, room: int
) -> None:
    runner, memory = ModelRunner(Net(), held_out(16)), Memory(bounded=True, own_process=own_process)
    peaks = _Memory(4_100)
    assert runner.variants_at_once(gradient=True) == 1  # Nothing is known yet.
    with peaks.patched(), memory.bounding(runner, training_peak=4_100):
        with memory.measure_room(runner, 16):
            peaks.run(16)
        assert runner.room == room
        assert runner.variants_at_once(gradient=True) == room // 16


def test_variants_that_took_more_than_there_was_room_for_stay_fewer() -> None:
    runner, memory = ModelRunner(Net(), held_out(16)), Memory(bounded=True, own_process=True)
    peaks, at_once = _Memory(2_000), []
    with peaks.patched():
        for _ in range(4):
            with memory.bounding(runner, training_peak=2_000):
                with memory.measure_room(runner, 16):
                    peaks.run(16)
                # Variants of this model need three times what the pass without them showed.
                at_once.append(runner.variants_at_once(gradient=True))
                peaks.run(3 * 16 * at_once[-1])
    assert at_once == [2, 1, 1, 1]  # (2 * 2000 - 500) / 100 are 35 sequences.


def test_a_small_model_s_points_of_integrated_gradients_run_in_one_pass() -> None:
    mx.eval(mx.zeros(1 << 22))  # Memory that training took.
    callback = ncp.GradientAttribution(
        method=ncp.attribution.IntegratedGradients(n_steps=4, at_inputs=True), removal=0
    )
    options = {"writer": ncp.MemoryWriter(), "every": 1, "background": False}
    with ncp.Monitor(Counting(), held_out(), [callback], **options) as monitor:
        Counting.batches.clear()
        monitor.on_step_end(1)
    # The gradient at the inputs, that at three points, and the baseline, which all have in common.
    assert Counting.batches == [B, 3 * B, 2]


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "all"])
def test_chunk_sizes_that_are_none(bad: object) -> None:
    with pytest.raises(ValueError, match=r"chunk_size=.*pass 1 or more"):
        ncp.Monitor(Net(), held_out(), writer=ncp.MemoryWriter(), chunk_size=bad)  # type: ignore[arg-type]


def test_chunks_change_nothing_but_memory() -> None:
    def curves(**options: object) -> dict[str, list[tuple[int, float]]]:
        mx.random.seed(0)
        writer = ncp.MemoryWriter()
        with ncp.Monitor(Net(), held_out(), writer=writer, every=1, **options) as monitor:  # type: ignore[arg-type]
            monitor.on_step_end(1)
        return {t: writer.scalars(t) for t in writer.tags if not t.startswith("monitor/")}

    whole = curves()
    for size in (1, 4):
        for tag, curve in curves(chunk_size=size).items():
            np.testing.assert_allclose(curve, whole[tag], rtol=1e-4, atol=1e-6, err_msg=tag)
