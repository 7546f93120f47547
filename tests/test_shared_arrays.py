"""Arrays of records are those of the step: neither callbacks nor sinks change them afterwards."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure
from small_nets import Net

import ncp_callbacks as ncp
from ncp_callbacks.runs import read_run

X = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
EDGES = np.arange(12.0)


def grey(data: dict[str, Any], *, step: int) -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.add_axes((0, 0, 1, 1)).set_facecolor((float(data["values"][0]) / 10,) * 3)
    return figure


class Reuses(ncp.Callback):
    """Count the snapshots in an array that it keeps, and yield that."""

    default_name = "reuses"

    def __init__(self) -> None:
        super().__init__()
        self.values = np.zeros(3, np.float32)

    def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
        self.values += 1
        yield ncp.Array("_ncp/reuses", self.values)
        yield ncp.Histogram("reuses/histogram", self.values, EDGES)
        yield ncp.Figure(
            "reuses/picture", grey, {"values": self.values}, {"step": observation.step}
        )


class Changes:
    """A sink that would like to change what it gets."""

    def __init__(self) -> None:
        self.refused = 0

    def write(self, step: int, records: Sequence[ncp.Record]) -> None:
        for record in records:
            if isinstance(record, ncp.Array | ncp.Histogram | ncp.Embedding):
                try:
                    record.values[...] = -7.0
                except ValueError:
                    self.refused += 1


@pytest.mark.parametrize("background", [False, True])
def test_values_are_those_of_the_step(background: bool, tmp_path: Path) -> None:
    sink = Changes()
    with ncp.Monitor(
        Net(), ncp.HeldOutBatch(X), [Reuses()], tmp_path / "run", writer=sink, every=1,
        background=background,
    ) as monitor:  # fmt: skip
        for step in range(1, 5):
            monitor.on_step_end(step)
    assert monitor.notes == ()
    run = read_run(tmp_path / "run")
    arrays = run.arrays["_ncp/reuses"]
    assert {step: array.tolist() for step, array in arrays.items()} == {
        step: [float(step)] * 3 for step in range(1, 5)
    }
    bins = {step: int(b.counts.argmax()) for step, b in run.histograms["reuses/histogram"].items()}
    assert bins == {1: 1, 2: 2, 3: 3, 4: 4}
    for step, image in run.images["reuses/picture"].items():
        pixel = PIL.Image.open(io.BytesIO(image.data())).convert("L").getpixel((50, 50))
        assert abs(pixel / 255 - step / 10) < 0.02  # type: ignore[operator]
    assert len(run.images["reuses/picture"]) == 4
    assert sink.refused == 8


def test_what_cannot_be_copied_is_drawn_as_it_is(tmp_path: Path) -> None:
    class Uncopyable(dict[str, Any]):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("no")

    class Yields(Reuses):
        def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
            data = Uncopyable(values=np.array([5.0]))
            yield ncp.Figure("reuses/picture", grey, data, {"step": observation.step})

    with ncp.Monitor(
        Net(), ncp.HeldOutBatch(X), [Yields()], tmp_path / "run", every=1, background=False
    ) as monitor:
        monitor.on_step_end(1)
    assert monitor.notes == ()
    assert read_run(tmp_path / "run").images["reuses/picture"].keys() == {1}
