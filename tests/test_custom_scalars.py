"""Curves that belong together in a real TensorBoard's Custom Scalars; CIs written and read back."""

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

from ncp_callbacks.records import Scalar
from ncp_callbacks.runs import compare_runs, read_run
from ncp_callbacks.writers import MemoryWriter, SummaryWriterAdapter, TensorBoardWriter
from ncp_callbacks.writers.custom_scalars import MAX_CHARTS

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
CALLBACKS = ["attribution", "time_delta", "faithfulness", "a", "held_out"]
RUNS = ["one", "two"]
SCALES = ["time_delta/loss_x0.5", "time_delta/loss_x2"]
FEATURES = [f"attribution_share/{name}" for name in ("pulse", "oxygen", "other")]


def write(log_dir: Path, steps: range, tags: list[str], **options: Any) -> None:
    writer = TensorBoardWriter(log_dir, **options)
    writer.arrange(CALLBACKS)
    for step in steps:
        writer.write(step, [Scalar(tag, step) for tag in tags])
    writer.close()


@given(st.lists(st.tuples(NUMBERS, BOUNDS), max_size=8), st.sampled_from(["group", "data"]))
def test_a_number_and_its_ci_are_read_back_with_and_without_a_card(
    points: list[tuple[float, tuple[float, float] | None]], place: Any
) -> None:
    with TemporaryDirectory() as where:
        writer = TensorBoardWriter(where)
        for step, (value, interval) in enumerate(points, start=1):
            writer.write(step, [Scalar("a/x", value, ci=interval, place=place)])
        writer.close()
        run = read_run(where)
        cards = EventAccumulator(where).Reload().Tags()["scalars"]
    assert cards == ["a/x"] * (bool(points) and place == "group")
    if points:
        np.testing.assert_array_equal(run.scalars["a/x"].values, [value for value, _ in points])
        assert run.scalars["a/x"].steps.tolist() == list(range(1, len(points) + 1))
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


def test_a_number_whose_card_comes_or_goes_with_a_resumed_run_is_read_whole(
    tmp_path: Path,
) -> None:
    for first, place in ((1, "data"), (4, "group"), (7, "data")):
        writer = TensorBoardWriter(tmp_path, first_step=first)
        for step in range(first, first + 4):
            value = float(step)
            writer.write(step, [Scalar("a/x", value, ci=(value - 1, value + 1), place=place)])  # type: ignore[arg-type]
        writer.close()
    run, steps = read_run(tmp_path), np.arange(1, 11)
    np.testing.assert_array_equal(run.scalars["a/x"].steps, steps)
    np.testing.assert_array_equal(run.scalars["a/x"].values, steps)
    np.testing.assert_array_equal(run.ci["a/x"].steps, steps)
    np.testing.assert_array_equal(run.ci["a/x"].low, steps - 1)


# --- the layout


def test_curves_that_belong_together_share_a_chart(tmp_path: Path) -> None:
    alone = ["attribution/strength", "lr"]
    pair = ["faithfulness/cpd", "faithfulness/cpd_random"]
    losses = ["train/loss", "val/loss", "val/accuracy", "held_out/accuracy"]
    write(tmp_path, range(3), [*alone, *SCALES, *pair, *FEATURES, *losses])
    *_, last = layouts(tmp_path)
    assert charts(last) == {
        "learning": ["loss", "accuracy"],
        "time_delta": ["loss_x*"],
        "faithfulness": ["cpd"],
        "attribution_share": ["shares"],
    }
    drawn = {chart.title: list(chart.multiline.tag) for c in last.category for chart in c.chart}
    assert drawn["loss"] == ["^train/loss$", "^val/loss$"]
    assert drawn["accuracy"] == ["^val/accuracy$", "^xai_held_out/accuracy$"]
    assert drawn["shares"] == [f"^xai_{tag}$" for tag in FEATURES]
    assert drawn["loss_x*"] == [r"^xai_time_delta/loss_x0\.5$", "^xai_time_delta/loss_x2$"]


def test_a_layout_is_written_when_a_chart_is_new_and_is_bounded(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.arrange([f"group{i}" for i in range(100)])
    for step in range(5):
        writer.write(step, [Scalar("train/loss", 1.0), Scalar("a/plain", 1.0)])
    writer.write(5, [Scalar("val/loss", 1.0)])
    writer.write(6, [Scalar("val/loss", 1.0)])
    writer.write(7, [Scalar(f"group{i}/x{k}", 1.0) for i in range(100) for k in range(3)])
    writer.close()
    first, second = layouts(tmp_path)
    assert charts(first) == {"learning": ["loss"]}
    assert sum(map(len, charts(second).values())) == MAX_CHARTS


MINE = {
    "mine": {"loss": ["Multiline", ["^train/loss$"]]},
    "learning": {"own": ["Multiline", ["^a/"]]},
}


def test_a_layout_of_the_users_own_survives(tmp_path: Path) -> None:
    mine = tensorboardX.SummaryWriter(str(tmp_path / "before"))
    mine.add_custom_scalars(MINE)
    mine.flush()
    mine.close()
    mine = tensorboardX.SummaryWriter(str(tmp_path / "before"), filename_suffix=".2")
    adapter = SummaryWriterAdapter(mine)
    adapter.arrange(CALLBACKS)
    adapter.write(1, [Scalar("train/loss", 1.0), Scalar("val/loss", 1.0)])
    adapter.flush()
    adapter.write(2, [Scalar(tag, 1.0) for tag in FEATURES])
    adapter.close()
    mine.close()
    assert charts(layouts(tmp_path / "before")[-1]) == {
        "mine": ["loss"],
        "learning": ["own", "loss"],
        "attribution_share": ["shares"],
    }

    mine = tensorboardX.SummaryWriter(str(tmp_path / "after"))
    adapter = SummaryWriterAdapter(mine)
    adapter.write(1, [Scalar("train/loss", 1.0), Scalar("val/loss", 1.0)])
    adapter.close()
    mine.add_custom_scalars(MINE)
    mine.close()
    assert {"mine", "learning"} <= set(charts(layouts(tmp_path / "after")[-1]))


def test_a_resumed_run_keeps_its_charts(tmp_path: Path) -> None:
    write(tmp_path, range(1, 3), ["train/loss", "val/loss", *FEATURES])
    write(tmp_path, range(5, 7), ["a/x1", "a/x2", *reversed(FEATURES)], first_step=5)
    *_, last = layouts(tmp_path)
    assert charts(last) == {"learning": ["loss"], "attribution_share": ["shares"], "a": ["x*"]}
    (shares,) = (c for c in last.category if c.title == "attribution_share")
    assert set(shares.chart[0].multiline.tag) == {f"^xai_{tag}$" for tag in FEATURES}


def test_a_layout_that_is_none_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tensorboardX.SummaryWriter(str(tmp_path))
    summary = tensorboardX.summary.custom_scalars(MINE)
    summary.value[0].tensor.string_val[0] = b"\xff\xff\xff"
    mine.file_writer.add_summary(summary)
    mine.close()
    writer = TensorBoardWriter(tmp_path, first_step=1)
    writer.arrange(CALLBACKS)
    for step in (1, 2, 3):
        writer.write(step, [band("a/x1", step, 1), Scalar(f"a/x{step + 1}", 1)])
        writer.flush()
    writer.close()
    assert writer.failure is None
    assert caplog.text.count("the layout of the Custom Scalars dashboard can't be written") == 1
    assert read_run(tmp_path).ci["a/x1"].low.tolist() == [0, 1, 2]


# --- a real TensorBoard


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("charts")
    for run in RUNS:
        writer = TensorBoardWriter(where / run)
        writer.arrange(CALLBACKS)
        for step in range(20):
            records = [Scalar(tag, step, place="nonzero") for tag in FEATURES]
            records += [Scalar(tag, step) for tag in SCALES]
            writer.write(step, records)
        writer.close()
    return where


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "slow"])
def board(log_dir: Path, request: pytest.FixtureRequest) -> Iterator[Board]:
    server = Board(log_dir, request.param)

    def is_loaded(run: str) -> bool:
        points = server.get("scalars/scalars", run=run, tag=f"xai_{SCALES[-1]}")
        return bool(points[-1][1] == 19)

    try:
        server.wait(lambda: all(map(is_loaded, RUNS)))
        yield server
    finally:
        server.close()


def test_charts_draw_the_curves_of_all_runs(board: Board) -> None:
    layout = board.get("custom_scalars/layout")
    found = {c["title"]: [chart["title"] for chart in c["chart"]] for c in layout["category"]}
    assert found == {"attribution_share": ["shares"], "time_delta": ["loss_x*"]}
    charts = {chart["title"]: chart for c in layout["category"] for chart in c["chart"]}
    for title, tags in (("shares", FEATURES), ("loss_x*", SCALES)):
        pattern = "|".join(f"({tag})" for tag in charts[title]["multiline"]["tag"])
        for run in RUNS:
            answer = board.get("custom_scalars/scalars", run=run, tag=pattern)
            assert answer["regex_valid"]
            drawn = answer["tag_to_events"]
            assert set(drawn) == {f"xai_{tag}" for tag in tags}
            assert all(points[-1][1] == 19 for points in drawn.values())


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
