"""Pictures drawn on a thread: one that fails or never ends costs nothing but itself."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as Drawn

from ncp_callbacks.plots import plot_feature_importance, to_png
from ncp_callbacks.plotting.redraw import Redrawer
from ncp_callbacks.plotting.renderer import Renderer
from ncp_callbacks.records import Figure, Picture

IMPORTANCE = np.random.default_rng(0).random((6, 3))


def lines(values: Any) -> Drawn:
    figure = Drawn(figsize=(2, 1))
    figure.subplots().plot(values)
    return figure


class Endless:
    """A plot function that doesn't return until it is released."""

    def __init__(self) -> None:
        self.started, self.released = threading.Event(), threading.Event()

    def __call__(self, values: Any) -> Drawn:
        self.started.set()
        self.released.wait(60)
        return lines(values)


def raising(error: type[BaseException]) -> Callable[[Any], Drawn]:
    def plot(values: Any) -> Drawn:
        raise error(values)

    return plot


class Delivered(list[tuple[int, float, Picture]]):
    def __call__(self, step: int, wall_time: float, picture: Picture) -> None:
        self.append((step, wall_time, picture))

    @property
    def names(self) -> list[tuple[int, str]]:
        return [(step, picture.tag) for step, _, picture in self]


@pytest.fixture
def delivered() -> Delivered:
    return Delivered()


@pytest.fixture
def endless() -> Iterator[Endless]:
    plot = Endless()
    yield plot
    plot.released.set()


@pytest.fixture(autouse=True)
def _nothing_left(endless: Endless) -> Iterator[None]:
    # Another test of this process may have left a log open.
    before = set(threading.enumerate())
    yield
    endless.released.set()
    end = time.monotonic() + 5
    while [
        t for t in threading.enumerate() if t.name.startswith("ncp_callbacks") and t not in before
    ]:
        assert time.monotonic() < end, threading.enumerate()
        time.sleep(0.01)


def figure(tag: str = "a/b", plot: Callable[..., Drawn] = lines, data: Any = (1, 2)) -> Figure:
    return Figure(tag, plot, data)


def test_pictures_are_those_of_a_redrawer(delivered: Delivered) -> None:
    states = np.random.default_rng(1).standard_normal((40, 2))
    renderer = Renderer(delivered)
    for step in (1, 2):
        renderer.submit(
            step,
            step + 0.5,
            [
                Figure("a", plot_feature_importance, IMPORTANCE, {"step": step}, "What matters."),
                Figure("b", lines, states),
            ],
        )
    renderer.close()
    redrawer = Redrawer()
    assert delivered == [
        (
            step,
            step + 0.5,
            Picture(tag, redrawer.png(tag, plot, data, options), description),
        )
        for step in (1, 2)
        for tag, plot, data, options, description in (
            ("a", plot_feature_importance, IMPORTANCE, {"step": step}, "What matters."),
            ("b", lines, states, {}, ""),
        )
    ]
    assert delivered[1][2].png == to_png(lines(states))
    assert (renderer.dropped, renderer.failed) == (0, 0)


def test_submit_never_waits(delivered: Delivered, endless: Endless) -> None:
    renderer = Renderer(delivered)
    renderer.submit(1, 0.0, [figure(plot=endless)])
    assert endless.started.wait(30)
    before = time.perf_counter()
    for step in range(100):
        renderer.submit(step, 0.0, [figure("c")])
    assert time.perf_counter() - before < 0.2
    renderer.close(0.0)


def test_an_endless_picture_is_given_up_and_the_others_are_drawn(
    delivered: Delivered, endless: Endless, log: pytest.LogCaptureFixture
) -> None:
    renderer = Renderer(delivered, timeout=1.0)
    renderer.submit(1, 0.0, [figure("before"), figure("stuck", endless), figure("after")])
    renderer.submit(2, 0.0, [figure("stuck", endless), figure("after")])
    assert renderer.flush()
    renderer.submit(3, 0.0, [figure("stuck", endless), figure("after")])
    before = time.monotonic()
    assert renderer.flush()
    assert time.monotonic() - before < 0.9  # It isn't tried again.
    endless.released.set()
    renderer.submit(4, 0.0, [figure("after")])
    renderer.close()
    names = [(1, "before"), (1, "after"), (2, "after"), (3, "after"), (4, "after")]
    assert delivered.names == names
    assert (renderer.dropped, renderer.failed) == (0, 3)
    assert log.text.count("the picture 'stuck' of step 1 takes longer than 1 s") == 1
    assert len(log.records) == 1


@pytest.mark.parametrize(
    "error", [ZeroDivisionError, SystemExit, KeyboardInterrupt, GeneratorExit, TimeoutError]
)
def test_a_failing_plot_function_loses_its_own_picture(
    error: type[BaseException], delivered: Delivered, log: pytest.LogCaptureFixture
) -> None:
    renderer = Renderer(delivered)
    for step in (1, 2):
        renderer.submit(step, 0.0, [figure("bad", raising(error), "why"), figure("good")])
    renderer.submit(3, 0.0, [figure("worse", raising(error), "else")])
    renderer.close()
    assert delivered.names == [(1, "good"), (2, "good")]
    assert (renderer.dropped, renderer.failed) == (0, 3)
    assert [record.getMessage().count("'bad'") for record in log.records] == [1, 0]
    assert log.text.count("Traceback") == 2
    assert f"{error.__name__}: why" in log.text


def test_what_is_no_figure_of_matplotlib_is_lost_alone(
    delivered: Delivered, log: pytest.LogCaptureFixture
) -> None:
    renderer = Renderer(delivered)
    renderer.submit(1, 0.0, [figure("bad", lambda data: None), figure("good")])
    renderer.close()
    assert delivered.names == [(1, "good")]
    assert renderer.failed == 1


def test_all_figures_of_a_step_are_dropped_together(
    delivered: Delivered, endless: Endless, log: pytest.LogCaptureFixture
) -> None:
    renderer = Renderer(delivered, max_figures=4)
    renderer.submit(1, 0.0, [figure("stuck", endless)])
    assert endless.started.wait(30)
    for step in range(2, 6):
        renderer.submit(step, 0.0, [figure(tag) for tag in "abc"])
    endless.released.set()
    renderer.close()
    assert delivered.names == [(1, "stuck"), (2, "a"), (2, "b"), (2, "c")]
    assert renderer.dropped == 9
    assert log.text.count("dropping some from step 3 on") == len(log.records) == 1


def test_more_figures_of_a_step_than_may_wait_are_drawn(delivered: Delivered) -> None:
    renderer = Renderer(delivered, max_figures=2, max_bytes=10)
    renderer.submit(1, 0.0, [figure(tag) for tag in "abcde"])
    renderer.close()
    assert "".join(tag for _, tag in delivered.names) == "abcde"
    assert renderer.dropped == 0


def test_memory_is_bounded_and_released(delivered: Delivered, endless: Endless) -> None:
    renderer = Renderer(delivered, max_bytes=100_000)
    renderer.submit(0, 0.0, [figure("stuck", endless)])
    assert endless.started.wait(30)
    kept = []
    for step in range(1, 20):
        data = np.zeros(2500)  # 20 kB
        kept.append(weakref.ref(data))
        renderer.submit(step, 0.0, [figure("big", data=data)])
        del data
    assert sum(reference() is not None for reference in kept) == 4
    assert renderer.dropped == 15
    endless.released.set()
    assert renderer.flush()
    assert len(delivered) == 5
    for step in (21, 22, 23, 24):  # There is room again.
        renderer.submit(step, 0.0, [figure("big", data=np.zeros(2500))])
    renderer.close()
    assert len(delivered) == 9
    assert not any(reference() is not None for reference in kept)


def test_closing_gives_up_pictures_in_time(
    delivered: Delivered, endless: Endless, log: pytest.LogCaptureFixture
) -> None:
    renderer = Renderer(delivered)
    renderer.submit(1, 0.0, [figure("good")])
    renderer.submit(2, 0.0, [figure("stuck", endless), figure("good"), figure("good")])
    assert endless.started.wait(30)
    before = time.monotonic()
    renderer.close(timeout=0.3)
    renderer.close()
    assert time.monotonic() - before < 1.0
    endless.released.set()
    renderer.submit(3, 0.0, [figure("good")])
    assert renderer.flush()
    time.sleep(0.3)
    assert delivered.names == [(1, "good")]
    assert renderer.dropped == 3
    assert [record.getMessage() for record in log.records] == [
        "closing the log gave up 3 pictures, the first of them 'stuck' of step 2"
    ]


def test_a_delivery_that_fails_is_reported_once(log: pytest.LogCaptureFixture) -> None:
    def deliver(step: int, wall_time: float, picture: Picture) -> None:
        raise BrokenPipeError("nobody reads")

    renderer = Renderer(deliver)
    for step in (1, 2):
        renderer.submit(step, 0.0, [figure()])
    renderer.close()
    assert renderer.failed == 2
    assert log.text.count("BrokenPipeError: nobody reads") == 1


def test_a_plot_function_may_flush(delivered: Delivered) -> None:
    renderer = Renderer(delivered)

    def plot(values: Any) -> Drawn:
        renderer.flush()
        return lines(values)

    renderer.submit(1, 0.0, [figure(plot=plot)])
    renderer.close(10.0)
    assert delivered.names == [(1, "a/b")]


def test_an_abandoned_renderer_draws_what_waits_and_ends(delivered: Delivered) -> None:
    ended = threading.Event()
    renderer = Renderer(delivered)
    renderer.submit(1, 0.0, [figure()])
    renderer.abandon(then=ended.set)
    assert ended.wait(30)
    assert delivered.names == [(1, "a/b")]

    ended = threading.Event()
    Renderer(delivered).abandon(then=ended.set)
    assert ended.is_set()


def test_without_threads_nothing_is_drawn_and_nothing_raised(
    delivered: Delivered, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    renderer = Renderer(delivered)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for step in (1, 2):
            renderer.submit(step, 0.0, [figure()])
        assert renderer.flush()
    assert renderer.dropped == 2
    assert log.text.count("can't start new thread") == 1
    renderer.submit(3, 0.0, [figure()])
    renderer.close()
    assert delivered.names == [(3, "a/b")]


def test_a_forked_child_does_nothing(delivered: Delivered) -> None:
    renderer = Renderer(delivered)
    renderer.submit(1, 0.0, [figure()])
    assert renderer.flush()
    child = os.fork()
    if not child:
        # Any exception would be that of the tests themselves, once more.
        try:
            renderer.submit(2, 0.0, [figure()])
            fine = renderer.flush() and not renderer._jobs
            renderer.close()
            os._exit(0 if fine else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    renderer.close()
    assert delivered.names == [(1, "a/b")]


def test_pictures_are_drawn_when_the_interpreter_exits() -> None:
    code = """
import atexit, time
from matplotlib.figure import Figure as Drawn
from ncp_callbacks.plotting.renderer import Renderer
from ncp_callbacks.records import Figure

def plot(data):
    time.sleep(data)
    return Drawn((1, 1))

renderer = Renderer(lambda step, now, picture: print(step, picture.tag, flush=True))
# Registered before the renderer's own, it runs after it.
atexit.register(lambda: renderer.submit(3, 0.0, [Figure("late", plot, 0.2)]))
renderer.submit(1, 0.0, [Figure("a", plot, 0.2)])
renderer.submit(2, 0.0, [Figure("b", plot, 0.2)])
"""
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (out.stdout, out.stderr) == ("1 a\n2 b\n3 late\n", "")
