"""Scalars with an interval: in the file, in a real TensorBoard's Custom Scalars, read back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tensorboardX
from boards import Board
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util import tensor_util

from ncp_callbacks.records import Scalar, Text
from ncp_callbacks.runs import compare_runs, read_run
from ncp_callbacks.writers import MemoryWriter, SummaryWriterAdapter, TensorBoardWriter
from ncp_callbacks.writers.encoding import Encoder

LAYOUT = "custom_scalars__config__"
NAN = math.nan


def band(tag: str, value: float, half: float) -> Scalar:
    return Scalar(tag, value, ci=(value - half, value + half))


def layouts(log_dir: Path) -> list[Any]:
    """All layouts in a log, in TensorBoard's own reading."""
    accumulator = EventAccumulator(str(log_dir), size_guidance={"tensors": 0}).Reload()
    if LAYOUT not in accumulator.Tags()["tensors"]:
        return []
    return [
        Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
        for event in accumulator.Tensors(LAYOUT)
    ]


def charts(layout: Any) -> dict[str, list[str]]:
    return {c.title: [chart.title for chart in c.chart] for c in layout.category}


# --- the record


def test_bounds_in_the_wrong_order_are_an_error_where_they_are_made() -> None:
    with pytest.raises(ValueError, match=r"ci=\(2, 1\) of 'a/b': .*lower end first"):
        Scalar("a/b", 1.5, ci=(2, 1))
    assert Scalar("a/b", 9.0, ci=(1, 1)).ci == (1, 1)
    assert Scalar("a/b", 1.0, ci=(NAN, NAN)).ci is not None
    with pytest.raises(TypeError):
        Scalar("a/b", 1.0, "what", (0, 1))  # type: ignore[misc]


def test_memory_keeps_the_ci() -> None:
    writer = MemoryWriter()
    writer.write(3, [band("a", 1.0, 0.5), Scalar("b", 2.0)])
    assert [(step, r.ci) for step, r in writer.records if isinstance(r, Scalar)] == [
        (3, (0.5, 1.5)),
        (3, None),
    ]
    assert writer.scalars("a") == [(3, 1.0)]


# --- the file


NUMBERS = st.sampled_from([0.0, -1.5, 2.0, NAN, math.inf, -math.inf])
BOUNDS = st.none() | st.tuples(NUMBERS, NUMBERS).filter(lambda pair: not pair[0] > pair[1])


@given(st.lists(st.tuples(st.sampled_from(["a", "b/c"]), NUMBERS, BOUNDS), max_size=20))
def test_a_chart_has_its_three_tags_at_the_same_steps(
    points: list[tuple[str, float, tuple[float, float] | None]],
) -> None:
    encoder = Encoder()
    written: dict[str, list[tuple[int, float]]] = {}
    layout = Layout()
    for step, (tag, value, interval) in enumerate(points):
        for encoded in encoder.values(Scalar(tag, value, ci=interval)):
            written.setdefault(encoded.tag, []).append((step, encoded.simple_value))
        if encoder.layout_changed:
            (config,) = encoder.layout()
            layout = Layout.FromString(config.tensor.string_val[0])
        assert not encoder.layout_changed
    for tag in ("a", "b/c"):
        mine = [(i, value, bounds) for i, (t, value, bounds) in enumerate(points) if t == tag]
        assert [step for step, _ in written.get(tag, [])] == [step for step, _, _ in mine]
        whole = [
            (step, value, *bounds)
            for step, value, bounds in mine
            if bounds is not None and np.isfinite([value, *bounds]).all()
        ]
        found = [c for group in layout.category for c in group.chart if c.title == tag]
        assert len(found) == bool(whole)
        for chart in found:
            (series,) = chart.margin.series
            steps_and_values = [written[t] for t in (series.value, series.lower, series.upper)]
            for place, one in enumerate(steps_and_values, start=1):
                assert one == [(point[0], point[place]) for point in whole]


def test_layout_is_written_when_a_tag_is_new_and_is_bounded(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    for step in range(5):
        writer.write(step, [band("a/x", step, 1), Scalar("a/plain", 1), Text("a/x", "text")])
    writer.write(5, [band("a/x", 5, 1), band("b/y", 5, 1), band("alone", 5, 1)])
    writer.write(6, [band("b/y", 5, 1)])
    names = [f"many/{i}" for i in range(100)] + [f"groups{i % 20}/{i}" for i in range(100)]
    writer.write(7, [band(name, int(name.split("/")[1]), 1) for name in names])
    writer.write(8, [band("late", 1, 1)])
    writer.close()
    first, second, third = layouts(tmp_path)
    assert charts(first) == {"a": ["a/x"]}
    assert charts(second) == {"a": ["a/x"], "b": ["b/y"], "alone": ["alone"]}
    assert sum(map(len, charts(third).values())) == 48
    assert charts(third)["many"] == [f"many/{i}" for i in range(6)]
    # Without a chart of its own, but not lost, and in nobody's way.
    found = read_run(tmp_path).ci["many/99"]
    assert (found.steps.tolist(), found.low.tolist(), found.high.tolist()) == ([7], [98], [100])
    scalars = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert sum(tag.startswith("ci/") for tag in scalars) == 3 * 48


@pytest.mark.parametrize("charted", [(True, False), (False, True)])
def test_a_ci_whose_chart_comes_or_goes_with_a_resumed_run_is_read_whole(
    tmp_path: Path, charted: tuple[bool, bool]
) -> None:
    for first, chart in zip((1, 4), charted, strict=True):
        writer = TensorBoardWriter(tmp_path, first_step=first)
        for step in range(first, first + 4):
            value = float(step)
            writer.write(step, [Scalar("a/x", value, ci=(value - 1, value + 1), chart=chart)])
        writer.close()
    found = read_run(tmp_path).ci["a/x"]
    steps = np.arange(1, 8)
    np.testing.assert_array_equal(found.steps, steps)
    np.testing.assert_array_equal(found.low, steps - 1)
    np.testing.assert_array_equal(found.high, steps + 1)


@given(st.lists(st.tuples(NUMBERS, BOUNDS), max_size=8), st.booleans())
def test_a_ci_that_nobody_charts_is_kept(
    points: list[tuple[float, tuple[float, float] | None]], chart: bool
) -> None:
    with TemporaryDirectory() as where:
        writer = TensorBoardWriter(where)
        for step, (value, interval) in enumerate(points, start=1):
            writer.write(step, [Scalar("a/x", value, ci=interval, chart=chart)])
        writer.close()
        assert bool(layouts(Path(where))) <= chart
        run = read_run(where)
    whole = [
        (step, *bounds)
        for step, (value, bounds) in enumerate(points, start=1)
        if bounds is not None and np.isfinite([value, *bounds]).all()
    ]
    found = run.ci.get("a/x")
    bands = [] if found is None else zip(found.steps, found.low, found.high, strict=True)
    assert [tuple(map(float, point)) for point in bands] == whole
    assert not run.arrays
    assert set(run.scalars) <= {"a/x"}


def test_bounds_stay_apart_from_tags_of_the_user(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    for step in (1, 2):
        writer.write(step, [Scalar("ci/a b/low", 7), band("a b", 0, 1)])
        writer.write(step, [Scalar("ci/a_b/high", 9)])
    writer.close()
    (layout,) = layouts(tmp_path)
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    (series,) = layout.category[0].chart[0].margin.series
    for tag, value in ((series.value, 0), (series.lower, -1), (series.upper, 1)):
        assert [e.value for e in accumulator.Scalars(tag)] == [value, value]
    users = {e.value for tag in accumulator.Tags()["scalars"] for e in accumulator.Scalars(tag)}
    assert {7, 9} <= users


MINE = {"mine": {"loss": ["Multiline", ["^train/loss$"]]}, "a": {"own": ["Multiline", ["^a/"]]}}


def test_a_layout_of_the_users_own_survives(tmp_path: Path) -> None:
    mine = tensorboardX.SummaryWriter(str(tmp_path / "before"))
    mine.add_custom_scalars(MINE)
    mine.flush()
    mine.close()
    mine = tensorboardX.SummaryWriter(str(tmp_path / "before"), filename_suffix=".2")
    adapter = SummaryWriterAdapter(mine)
    adapter.write(1, [band("a/x", 1, 1)])
    adapter.flush()
    adapter.write(2, [band("b/y", 1, 1)])
    adapter.close()
    mine.close()
    assert charts(layouts(tmp_path / "before")[-1]) == {
        "mine": ["loss"],
        "a": ["own", "a/x"],
        "b": ["b/y"],
    }

    mine = tensorboardX.SummaryWriter(str(tmp_path / "after"))
    adapter = SummaryWriterAdapter(mine)
    adapter.write(1, [band("a/x", 1, 1)])
    adapter.close()
    mine.add_custom_scalars(MINE)
    mine.close()
    assert {"mine", "a"} <= set(charts(layouts(tmp_path / "after")[-1]))


def test_a_resumed_run_keeps_its_charts(tmp_path: Path) -> None:
    for first_step, tags in ((None, ["a/x", "a/y"]), (5, ["a/y", "a/z"])):
        writer = TensorBoardWriter(tmp_path, first_step=first_step)
        writer.write(first_step or 1, [band(tag, 1, 1) for tag in tags])
        writer.close()
    assert charts(layouts(tmp_path)[-1]) == {"a": ["a/x", "a/y", "a/z"]}


def test_charts_of_a_full_group_keep_their_places_in_a_resumed_run(tmp_path: Path) -> None:
    names = [f"a/{i}" for i in range(8)]
    for first_step, tags in ((None, names), (5, [*reversed(names), "b/x"])):
        writer = TensorBoardWriter(tmp_path, first_step=first_step)
        for step in range(first_step or 1, (first_step or 1) + 4):
            writer.write(step, [band(tag, step, 1) for tag in tags])
        writer.close()
    *_, last = layouts(tmp_path)
    assert charts(last) == {"a": names[:6], "b": ["b/x"]}
    log = EventAccumulator(str(tmp_path)).Reload()
    for name in names[:6]:
        for part in ("value", "low", "high"):
            found = [event.step for event in log.Scalars(f"ci/{name}/{part}")]
            assert found == list(range(1, 9))
    # Those without a chart are in no chart's way, and not lost.
    for name in names[6:]:
        assert f"ci/{name}/low" not in log.Tags()["scalars"]
        assert read_run(tmp_path).ci[name].steps.tolist() == list(range(1, 9))


def test_a_layout_that_is_none_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tensorboardX.SummaryWriter(str(tmp_path))
    summary = tensorboardX.summary.custom_scalars(MINE)
    summary.value[0].tensor.string_val[0] = b"\xff\xff\xff"
    mine.file_writer.add_summary(summary)
    mine.close()
    writer = TensorBoardWriter(tmp_path, first_step=1)
    for step in (1, 2, 3):
        writer.write(step, [band("a/x", step, 1), band(f"a/{step}", 1, 1)])
        writer.flush()
    writer.close()
    assert writer.failure is None
    assert caplog.text.count("the layout of the Custom Scalars dashboard can't be written") == 1
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    assert [e.value for e in accumulator.Scalars("ci/a/x/low")] == [0, 1, 2]


# --- a real TensorBoard


LONG = 3000


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("bands")
    writer = TensorBoardWriter(where / "gaps")
    for step in range(20):
        halves = {"a/always": 0.5, "a/sometimes": NAN if step % 3 else 0.5}
        writer.write(step, [band(tag, step, half) for tag, half in halves.items()])
        writer.write(step, [band("b/late", step, 1) if step > 9 else Scalar("b/late", step)])
        writer.write(step, [band("b/never", step, NAN)])
    writer.close()
    writer = TensorBoardWriter(where / "long")
    for step in range(LONG):
        half = NAN if step % 7 == 2 else 0.1
        writer.write(step, [band("a/always", step, 0.1), band("a/sometimes", step, half)])
    writer.close()
    writer = TensorBoardWriter(where / "without")
    writer.write(19, [Scalar("a/always", 1.0), Scalar("a/sometimes", 1.0)])
    writer.close()
    mine = tensorboardX.SummaryWriter(str(where / "mine"))
    mine.add_custom_scalars(MINE)
    mine.close()
    mine = tensorboardX.SummaryWriter(str(where / "mine"), filename_suffix=".2", purge_step=0)
    adapter = SummaryWriterAdapter(mine)
    adapter.write(19, [band("a/always", 19, 1)])
    adapter.close()
    mine.close()
    return where


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "slow"])
def board(log_dir: Path, request: pytest.FixtureRequest) -> Iterator[Board]:
    server = Board(log_dir, request.param)

    def last(run: str, tag: str) -> int:
        return int(server.get("scalars/scalars", run=run, tag=tag)[-1][1])

    try:
        server.wait(lambda: last("long", "ci/a/sometimes/high") == LONG - 1)
        server.wait(lambda: last("gaps", "b/never") == last("without", "a/sometimes") == 19)
        yield server
    finally:
        server.close()


def test_the_dashboard_has_a_chart_for_every_charted_ci(board: Board) -> None:
    layout = board.get("custom_scalars/layout")
    titles = {c["title"]: [chart["title"] for chart in c["chart"]] for c in layout["category"]}
    assert titles["a"][:2] == ["a/always", "a/sometimes"]
    assert titles["b"] == ["b/late"]


def test_charts_get_what_they_need(board: Board) -> None:
    """The dashboard draws a run whose three tags have equal steps, and one that has none of them;
    all else is an error message on the page.
    """
    drawn: dict[str, set[str]] = {}
    for category in board.get("custom_scalars/layout")["category"]:
        for chart in category["chart"]:
            for series in chart.get("margin", {"series": []})["series"]:
                tags = [series[part] for part in ("value", "lower", "upper")]
                pattern = "|".join(f"({tag})" for tag in tags)
                for run in ("gaps", "long", "without", "mine"):
                    answer = board.get("custom_scalars/scalars", run=run, tag=pattern)
                    found = [answer["tag_to_events"].get(tag) for tag in tags]
                    if not any(found):
                        continue
                    assert all(found), (run, tags)
                    steps = [[point[1] for point in points] for points in found]
                    assert steps[0] == steps[1] == steps[2]
                    assert all(
                        low[2] < value[2] < high[2] for value, low, high in zip(*found, strict=True)
                    )
                    drawn.setdefault(chart["title"], set()).add(run)
                    if run == "long":
                        assert len(steps[0]) == 1000  # Of more, TensorBoard shows a sample.
    assert drawn == {
        "a/always": {"gaps", "long", "mine"},
        "a/sometimes": {"gaps", "long"},
        "b/late": {"gaps"},
    }


# --- reading back


def test_read_back_and_compared(tmp_path: Path) -> None:
    for name, offset in (("with", 0.0), ("without", 0.5)):
        writer = TensorBoardWriter(tmp_path / name)
        for step in range(1, 9):
            value = step + offset
            interval = (value - 1, value + 2) if name == "with" and step % 2 else None
            writer.write(
                step,
                [
                    Scalar("attribution/strength", value, ci=interval),
                    Scalar("ci/mean", value),
                    Scalar("ci/mean/low", value),
                ],
            )
        writer.close()
    run = read_run(tmp_path / "with")
    assert set(run.scalars) == {"attribution/strength", "ci/mean", "ci/mean/low"}
    assert run.scalars["attribution/strength"].values.tolist() == list(range(1, 9))
    (tag,) = run.ci
    assert tag == "attribution/strength"
    found = run.ci[tag]
    assert found.steps.tolist() == [1, 3, 5, 7]
    assert found.low.tolist() == [0, 2, 4, 6]
    assert found.high.tolist() == [3, 5, 7, 9]
    assert run.warnings == ()

    result = compare_runs([tmp_path / "with", tmp_path / "without"])
    assert {row.tag for row in result.scalars} == set(run.scalars)
    assert all(row.changes[0].delta == 0.5 for row in result.scalars)
    assert result.partial == {}
