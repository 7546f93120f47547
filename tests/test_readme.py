"""README and guides do what they say: their Python blocks run, in order, on a small loop."""

from __future__ import annotations

import csv
import gc
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from promises import plain
from scripts import BENCHMARKS, script

import ncp_callbacks as ncp
from ncp_callbacks.models import CfC

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "examples").glob("*.md"))
TEXTS = {path: path.read_text() for path in [ROOT / "README.md", *GUIDES]}
BLOCKS = [
    block
    for text in TEXTS.values()
    for block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(3, 8, backbone_units=8), nn.Linear(8, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


class TimeFirst(Net):
    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        assert time_delta is not None
        return super().__call__(x.swapaxes(0, 1), time_delta.swapaxes(0, 1)).swapaxes(0, 1)


def namespace() -> dict[str, Any]:
    """Return what README and guides take for granted: a model, data, and a step."""
    mx.random.seed(0)
    model, optimizer = Net(), optim.Adam(learning_rate=1e-3)
    x, dt = mx.random.normal((20, 6, 3)), mx.random.uniform(0.5, 1.5, (20, 6))
    y = (x[:, :, 0].sum(axis=1) > 0).astype(mx.int32)
    loss_and_grad = nn.value_and_grad(
        model, lambda x, dt, y: nn.losses.cross_entropy(model(x, dt)[:, -1], y, reduction="mean")
    )

    def train_step(x: mx.array, dt: mx.array, y: mx.array) -> mx.array:
        loss, gradients = loss_and_grad(x, dt, y)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        return loss

    return {
        "__name__": "readme",
        "model": model,
        "time_first": TimeFirst(),
        "train_step": train_step,
        "batches": [(x, dt, y)] * 100,
        "x_val": x,
        "dt_val": dt,
        "y_val": y,
        "mask_val": mx.arange(6)[None] < mx.array([3, 4, 5, 6] * 5)[:, None],
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which every Python block was run, in order."""
    where = tmp_path_factory.mktemp("readme")
    names = namespace()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        for language, code in BLOCKS:
            if language == "python":
                exec(compile(code, "README.md", "exec"), names)
        # As at the exit of a script: some blocks leave a monitor open.
        for left in [o for o in gc.get_objects() if isinstance(o, ncp.Monitor)]:
            left.close()
    return where


def tags(run: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"tensors": 0})
    events.Reload()
    found = events.Tags()
    # Numbers without a card are arrays.
    shown = (*found["scalars"], *found["tensors"])
    return {plain(tag.removeprefix("_ncp/scalar/")) for tag in shown}


def test_every_block_runs(ran: Path) -> None:
    assert sorted(p.name for p in (ran / "runs").iterdir()) == [
        "attach", "cfc-seed0", "cfc-seed1", "integrated", "own", "replayed", "restarted",
        "start-close", "sweep", "targets", "time-first", "trackers",
    ]  # fmt: skip
    assert {p.name for p in ran.glob("*.png")} == {
        "backbone.png", "both.png", "comes_back.png", "importance.png", "sensitivity.png",
        "states.png",
    }  # fmt: skip


def test_the_three_lines_log_the_standard_set(ran: Path) -> None:
    found = tags(ran / "runs" / "cfc-seed0")
    groups = {t.split("/")[0] for t in found}
    assert groups >= {"train", "attribution", "time_delta", "transitions", "hidden", "backbone"}
    assert "train/loss" in found


def test_the_interrupted_run_goes_on_in_its_log(ran: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(ran / "runs" / "cfc-seed0"))
    events.Reload()
    assert [p.step for p in events.Scalars("train/loss")] == [100, 200]


def test_the_saved_checkpoints_are_analysed_at_their_steps(ran: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(ran / "runs" / "replayed"))
    events.Reload()
    assert [p.step for p in events.Scalars("xai_attribution/entropy")] == [100, 200, 300]


def test_start_and_close_log_what_a_block_does(ran: Path) -> None:
    assert {"train/loss", "attribution/entropy"} <= tags(ran / "runs" / "start-close")


@pytest.mark.parametrize("way", ["started", "steps", "function", "hook"])
def test_every_way_to_attach_logs_the_loss_and_analyses(ran: Path, way: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(ran / "runs" / "attach" / way))
    events.Reload()
    assert [p.step for p in events.Scalars("train/loss")] == [50, 100]
    if way != "hook":  # Its monitor is open until the process exits.
        assert [p.step for p in events.Scalars("xai_attribution/entropy")] == [50, 100]


def test_the_keywords_show(ran: Path) -> None:
    found = tags(ran / "runs" / "cfc-seed1")
    assert {"attribution_loss/heatmap", "time_delta_loss/curve", "val/loss"} <= found
    assert "attribution_loss_share/heart_rate" in found


def test_the_callback_of_ones_own_logs_its_figure(ran: Path) -> None:
    assert {"state_norm/last", "state_norm/curve"} <= tags(ran / "runs" / "own")


def test_the_callback_of_ones_own_is_short() -> None:
    (code,) = [code for _, code in BLOCKS if "class StateNorm" in code]
    assert len(code.splitlines()) < 40


@pytest.mark.parametrize(
    ("path", "row"),
    [("README.md", r"\| `(\w+)` \|$"), ("examples/callbacks.md", r"^\| `(\w+)` \|")],
)
def test_the_tables_name_every_callback_and_the_standard_set_first(path: str, row: str) -> None:
    rows = re.findall(row, (ROOT / path).read_text(), re.MULTILINE)
    assert rows[:6] == [type(c).__name__ for c in standard()]
    public = [getattr(ncp, name) for name in dir(ncp)]
    classes = {c for c in public if isinstance(c, type) and issubclass(c, ncp.Callback)}
    assert len(rows) == len(set(rows))
    assert set(rows) == {c.__name__ for c in classes - {ncp.Callback}}


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1200


def test_the_guides_are_linked_from_the_readme() -> None:
    for path in GUIDES:
        assert f"(examples/{path.name})" in README


def standard() -> list[ncp.Callback]:
    from ncp_callbacks.callbacks import callback_set

    return callback_set("standard")


def test_the_two_commands_stand_below_their_headings() -> None:
    run = README.split("## Run it")[1].split("```")[1]
    test = README.split("## Test it")[1].split("```")[1]
    assert run.strip().endswith(".venv/bin/python examples/digits.py")
    assert test.strip().endswith(".venv/bin/python -m pytest -n auto")


def test_the_table_of_costs_is_the_stored_measurement() -> None:
    cost = script("cost")
    with (BENCHMARKS / "cost.csv").open(newline="") as file:
        table = cost.table(list(csv.DictReader(file)))
    shown = (ROOT / "examples" / "cost.md").read_text()
    assert shown.split("<!-- cost.csv -->\n")[1].split("<!-- end -->")[0] == table + "\n"


def test_the_guide_tells_how_fast_the_page_is_as_measured() -> None:
    with (BENCHMARKS / "view.csv").open(newline="") as file:
        rows = {row["what"]: row for row in csv.DictReader(file)}
    assert {(row["runs"], row["snapshots"]) for row in rows.values()} == {("100", "1000")}
    value = {what: float(row["value"]) for what, row in rows.items()}
    for what, row in rows.items():
        assert not row["budget"] or value[what] <= float(row["budget"])
    shown = " ".join((ROOT / "examples" / "compare.md").read_text().split())
    for text in (
        f"the first page after {value['browser: first drawn page']:.1f} s",
        f"slider takes {value['tick of the slider, four runs, median']:.0f} ms",
        f"holds {value['server: memory, two runs']:.0f} MB, "
        f"or {value['server: memory, all runs in the table']:.0f} MB",
    ):
        assert text in shown


def test_the_short_example_finds_the_signal(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, Path(__file__).parent.parent / "examples" / "three_lines.py"],
        cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "tensorboard --logdir" in out.stdout
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "runs" / "three_lines" / "ltc"))
    events.Reload()
    assert [p.step for p in events.Scalars("train/loss")] == list(range(10, 101, 10))
    # One channel carries the answer, the other one is noise.
    scalars = events.Tags()["scalars"]
    (shown,) = (tag for tag in scalars if plain(tag) == "attribution_share/signal")
    assert events.Scalars(shown)[-1].value > 0.8


def test_the_comparison_runs_as_shown(tmp_path: Path) -> None:
    names = namespace()
    held_out = ncp.HeldOutBatch(names["x_val"], names["dt_val"])
    for seed in (0, 1):
        names["model"].head.weight = names["model"].head.weight * (1 + seed)
        run = tmp_path / "runs" / "digits" / f"cfc-u48-s{seed}"
        with ncp.Monitor(names["model"], held_out, log_dir=run, every=2) as monitor:
            for step in range(1, 7):
                monitor.on_step_end(step, loss=step * (1 + seed))
    (command,) = [code for language, code in BLOCKS if "ncp-callbacks compare" in code]
    program, *arguments = shlex.split(command)
    out = subprocess.run(
        [Path(sys.executable).parent / program, *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "One run each: no significance" in out.stdout
    assert "train/loss" in out.stdout
    assert (tmp_path / "report" / "compare.html").is_file()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_what_is_linked_exists(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", TEXTS[path])
    for file, heading in links:
        if file.startswith("http"):
            continue
        target = (path.parent / file).resolve() if file else path
        assert target.is_file(), file
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {h.lower().replace(" ", "-") for h in headings}, heading


def test_only_bash_and_python_blocks() -> None:
    # A block in another language would be a block that nobody runs.
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
