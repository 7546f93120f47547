"""The benchmark of costs: its arithmetic, its table, and that it runs. No times are asserted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from scripts import script

import ncp_callbacks as ncp

cost = script("cost")
report = sys.modules["cost_report"]
cases = sys.modules["peers.cases"]
protocol = sys.modules["peers.protocol"]
TINY = cases.SIZES["tiny"]


class Silent:
    def advance(self, what: str) -> None:
        pass


def rows(**columns: str) -> dict[str, str]:
    return {column: columns.get(column, "") for column in report.COLUMNS}


def look(size: str, sequences: int, what: str, quantity: str, median: float) -> dict[str, str]:
    return rows(
        scope="look", model="CfC", size=size, sequences=str(sequences), what=what,
        quantity=quantity, median=str(median), unit="steps",
    )  # fmt: skip


# ---- arithmetic


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_slope_of_a_power_is_its_exponent(power: float) -> None:
    x = [1, 2, 4, 8, 16]
    assert report.slope(x, [3.0 * v**power for v in x]) == pytest.approx(power, abs=1e-12)


def test_rounds_give_ratios_of_medians_without_the_first_round() -> None:
    rounds = cost.Rounds(lambda: None, model="CfC", size="S", sequences=4)
    for step, call in [(100.0, 900.0), (2.0, 3.0), (1.0, 5.0), (4.0, 4.0)]:
        rounds.start()
        rounds.step(step)
        rounds.note("standard set", "in the loop", call)
        rounds.note("standard set", "extra", call, "%")
    own, ratio, share = rounds.rows("look")
    assert (own["what"], own["unit"], own["median"], own["rounds"]) == (
        "training step", "ms", "2000", "3",
    )  # fmt: skip
    # Median 4 of 3, 5, 4 over median 2 of 2, 1, 4; quartiles 3.5 and 4.5.
    assert [ratio[k] for k in ("median", "q1", "q3", "unit")] == ["2", "1.75", "2.25", "steps"]
    assert (share["median"], share["unit"]) == ("4", "%")
    assert (own["model"], ratio["size"], share["sequences"]) == ("CfC", "S", "4")


def test_time_in_passes_is_counted_once_and_only_inside() -> None:
    training = cost.Training("CfC", TINY)
    passes = cost.Passes(training.model)
    before = (mx.eval, mx.grad, mx.value_and_grad, mx.vjp, type(training.model).__call__)
    outer = cost.timed(training.gradient)
    assert passes.seconds == 0
    with passes.counted():
        outer = cost.timed(training.gradient)
    # A gradient runs the model inside, which must not count twice.
    assert 0 < passes.seconds <= outer
    with passes.counted():
        sum(range(1000))
    assert passes.seconds == 0
    assert before == (mx.eval, mx.grad, mx.value_and_grad, mx.vjp, type(training.model).__call__)


# ---- the table


def example() -> list[dict[str, str]]:
    found = []
    for sequences, factor in ((64, 1.0), (16, 0.25)):
        found += [
            look("M", sequences, "standard set", "in the loop", 1.5 * factor),
            look("M", sequences, "standard set", "until on disk", 1.75 * factor),
            look("M", sequences, "standard set", "next step", 1.25),
            look("M", sequences, "standard set", "model passes", 1.25 * factor),
            look("M", sequences, "bare model", "forward pass", 0.5 * factor),
            look("M", sequences, "bare model", "gradient pass", 0.75 * factor),
            look("M", sequences, "standard set", "entering", 2.5 * factor),
        ]
    found += [
        look("M", 64, "StateSpace", "in the loop", 0.5),
        look("M", 64, "StateSpace", "until on disk", 0.625),
    ]
    peers = [
        look("M", 64, "standard set", "until on disk", 2.0),
        look("M", 64, report.ALL_INTEGRATED, "until on disk", 2.5),
        look("M", 64, report.FEW_INTEGRATED, "until on disk", 2.25),
        look("M", 64, "PyTorch + Captum", "until on disk", 16.0),
        look("M", 64, "PyTorch + Captum", "with integrated gradients", 25.0),
        look("M", 64, "PyTorch + Captum", "with those of 8 sequences", 18.0),
        look("M", 64, "plain MLX", "until on disk", 5.0),
    ]
    return found + [{**row, "scope": "peer"} for row in peers]


def test_the_table_shows_what_was_measured() -> None:
    lines = report.table(example()).splitlines()
    assert "| CfC M, standard set | 1.50 | 1.75 | 0.38 | 0.44 |" in lines
    assert "| CfC M, `StateSpace` alone | 0.50 | 0.62 | – | – |" in lines
    assert "M: batch 64, 64 steps, 16 features, 64 units." in lines
    # Three forward passes and one with gradients; of the rest first what the loop pays for.
    assert "| CfC M, 64 sequences | 2.25 | 1.25 | 0.25 | 0.25 |" in lines
    assert "| CfC M, 16 sequences | 0.56 | 0.31 | 0.06 | 0.06 |" in lines
    assert "| `ncp_callbacks`, standard set | 2.00 |" in lines
    torch, few, more = [line for line in lines if line.startswith("| PyTorch")]
    assert torch.endswith("SummaryWriter | 16.0 (8.0 ×) |")
    assert few.endswith(" + integrated gradients, 8 nodes, 8 sequences | 18.0 (8.0 ×) |")
    assert more.endswith(" + integrated gradients, 8 nodes, all sequences | 25.0 (10.0 ×) |")
    assert "at most 1.25 steps. Entering the monitor: at most 2.5 steps" in lines[-1]


def test_the_budgets_say_what_is_missed() -> None:
    lines = report.budgets(example()).splitlines()
    missed = [line for line in lines if line.startswith("MISSED")]
    assert [line for line in missed if "after a look" not in line] == [
        "MISSED plain MLX, M, times our look: 2.5 (≥ 3)"
    ]
    assert len(missed) == 3
    assert "ok     CfC M, whole batch, steps until on disk: 1.75 (≤ 2)" in lines
    assert "ok     PyTorch + Captum, M, times our look: 8 (≥ 5)" in lines


def test_the_table_goes_between_its_marks_and_nowhere_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- cost.csv -->\nold\n<!-- end -->\nb\n")
    report.into_readme(readme, "new")
    assert readme.read_text() == "a\n<!-- cost.csv -->\nnew\n<!-- end -->\nb\n"


# ---- it runs


@pytest.fixture(scope="module")
def measured() -> list[dict[str, str]]:
    """What is measured of a CfC and a GRU, at sizes of which nothing can be learned."""
    whole = cost.measure("CfC", "tiny", None, 1, Silent())
    few = cost.measure("GRU", "tiny", 2, 1, Silent())
    return [*whole, *few, *cost.growth(TINY._replace(batch=2, steps=2), 4, 1, Silent())]


def test_every_look_and_part_is_measured(measured: list[dict[str, str]]) -> None:
    found = {(r["model"], r["sequences"], r["what"]) for r in measured if r["scope"] == "look"}
    looks, parts, own = set(cost.LOOKS), set(cost.PARTS), {"training step"}
    assert found == {
        *(("CfC", "4", what) for what in looks | parts | own | {"bare model"}),
        *(("GRU", "2", what) for what in {"standard set", "bare model"} | own),
    }


def test_what_finds_nothing_to_look_at_is_left_out() -> None:
    # A GRU takes no intervals and has no backbone, which is no reason to stop.
    parts = {name: cost.PARTS[name] for name in ("TimeSensitivity", "BackboneActivations")}
    with cost.looking(cost.Training("GRU", TINY), None, parts) as looks:
        assert looks == {}


def test_what_a_look_consists_of_adds_up(measured: list[dict[str, str]]) -> None:
    for model in ("CfC", "GRU"):
        of = {
            r["quantity"]: float(r["median"])
            for r in measured
            if (r["model"], r["what"]) == (model, "standard set")
        }
        assert 0 < of["model passes"] < of["in the loop"] < of["until on disk"]
        beyond = 100 * (of["in the loop"] - of["model passes"]) / of["until on disk"]
        assert of["beyond model passes"] == pytest.approx(beyond, rel=0.01)


def test_growth_has_every_point(measured: list[dict[str, str]]) -> None:
    found = {(r["what"], r["quantity"]) for r in measured if r["scope"] == "growth"}
    points = {"sequences": (2, 4, 8), "time steps": (2, 4, 8), "scales": (1, 2, 4)}
    assert found == {
        (what, quantity)
        for what, numbers in points.items()
        for kind in ("time", "memory")
        for quantity in (f"{kind}, slope", *(f"{kind} at {n}" for n in numbers))
    }


def test_the_picture_can_be_drawn(measured: list[dict[str, str]], tmp_path: Path) -> None:
    from PIL import Image

    report.plot(measured, tmp_path / "cost.png")
    report.plot([*measured, *example()], tmp_path / "more.png")
    with Image.open(tmp_path / "cost.png") as one, Image.open(tmp_path / "more.png") as more:
        assert more.width > one.width  # one panel more: peers
        assert len(more.convert("RGB").getcolors(1 << 24)) > 10


@pytest.mark.parametrize("look", ["", "standard set"])
def test_a_process_of_its_own_says_what_it_holds(look: str) -> None:
    found = cost.in_process("CfC", "tiny", None, look)
    assert ("first look, steps" in found) == bool(look)
    assert found["MLX at its peak, MB"] > 0
    # A look leaves nothing behind; a step makes the optimiser's state the first time only.
    assert found["MLX after, MB"] == pytest.approx(found["MLX before, MB"], abs=0.01)
    # This process has Python, MLX, numpy and the tests in it.
    assert 50 < found["process at its peak, MB"] < 10_000


def test_a_step_that_is_not_due_is_measured() -> None:
    (row,) = cost.not_due(20)
    assert float(row["median"]) > 0


# ---- peers


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    naive = importlib.import_module("peers.naive_mlx")
    peer = naive.Peer("tiny", TINY.batch, str(tmp_path_factory.mktemp("naive")))
    yield peer
    peer.writer.close()


def test_plain_mlx_finds_what_we_find(plain: Any) -> None:
    found = {}
    logged = pytest.MonkeyPatch()
    module = sys.modules["peers.naive_mlx"]
    with logged.context() as patch:
        patch.setattr(module, "log", lambda writer, step, what, watch: found.update(what=what))
        plain.look("separate", nodes=32)
    theirs = found["what"]
    ours = ncp.interpret_model(plain.net, plain.x, plain.dt)
    np.testing.assert_allclose(
        np.abs(theirs.attribution).mean(axis=0), ours["importance"].importance, atol=1e-6
    )
    np.testing.assert_allclose(
        theirs.states, np.array(plain.net.rnn(plain.x, plain.dt)[0]), atol=1e-6
    )
    (layer,) = ours["backbone"].layers
    assert theirs.activations["layer0"].mean() == pytest.approx(layer.mean, abs=1e-6)
    # Complete: what integrated gradients attribute is the whole change from the zero input.
    zero = plain.net(mx.zeros_like(plain.x), plain.dt)[:, -1, 0]
    change = np.array(plain.net(plain.x, plain.dt)[:, -1, 0] - zero)
    np.testing.assert_allclose(theirs.integrated.sum(axis=(1, 2)), change, atol=1e-5)


def test_a_worker_does_what_it_is_told(tmp_path: Path) -> None:
    options = {"size": "tiny", "sequences": 2, "log": tmp_path}
    with protocol.Worker("peers.naive_mlx", sys.executable, **options) as worker:
        assert worker.versions["mlx"]
        assert worker.ask("step")["seconds"] > 0
        parts = worker.ask("look", way="separate", nodes=2)
    assert set(parts) == {
        "attribution", "time gradient", "scales", "states", "backbone", "integrated gradients",
        "of few of them", "figures", "numbers",
    }  # fmt: skip
    assert list(tmp_path.glob("events.*"))


def test_what_a_peer_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "captum.py").write_text("raise ImportError('none here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = {"size": "tiny", "sequences": 2, "log": tmp_path}
    with pytest.raises(protocol.PeerError, match=r"none here.*pip install -e '.\[peers\]'"):
        protocol.Worker("peers.torch_captum", sys.executable, **options)
    with pytest.raises(protocol.PeerError, match="can't be run"):
        protocol.Worker("peers.torch_captum", str(tmp_path / "python"), **options)
