"""Test that the contributor's guide does what it says: its blocks run, its paths exist."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jackknife
import matplotlib.figure
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.attribution import BUILT_IN, AttributionMethod

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
BLOCK = re.compile(
    r"^(?:<!-- file: (?P<file>\S+) -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
TABLE_TAG = re.compile(r"^ *``(state_norm/\w+)`` +(\w+) ", re.MULTILINE)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 5), nn.Linear(5, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.rnn(x))


class Squares(nn.Module):
    """The sum of weighted squares, whose attributions have a closed form."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.w = mx.array(weights)

    def __call__(self, x: mx.array) -> mx.array:
        return (self.w * x**2).sum(axis=(1, 2))[:, None]


class Training:
    """The model and batch of the guide, and a training step that makes the state larger."""

    def __init__(self) -> None:
        mx.random.seed(0)
        self.model = Net()
        self.held_out = ncp.HeldOutBatch(mx.random.normal((20, 6, 3)))
        self.states: dict[int, np.ndarray] = {}

    def step(self, step: int) -> None:
        self.model.rnn.Wx = self.model.rnn.Wx * 1.1
        states = self.model.rnn(mx.array(self.held_out.inputs))
        self.states[step] = np.array(states, np.float64)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The names after every block was run, in order, with the files that blocks stand for."""
    folder, training = tmp_path_factory.mktemp("guide"), Training()
    names: dict[str, Any] = {
        "__name__": "guide", "ncp": ncp, "model": training.model, "held_out": training.held_out,
        "train": training.step, "training": training,
        "writer": ncp.MemoryWriter(), "method_writer": ncp.MemoryWriter(),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for block in BLOCK.finditer(GUIDE):
            if block["file"]:
                path = folder / block["file"]
                path.parent.mkdir(exist_ok=True)
                path.write_text(block["code"])
            else:
                exec(compile(block["code"], "guide", "exec", dont_inherit=True), names)
        yield names
    for module in [m for m in sys.modules if m.split(".")[0] == "state_norm"]:
        del sys.modules[module]


def rms_by_sequence(states: np.ndarray) -> np.ndarray:
    """Return the mean over time steps of the RMS over units, by loops."""
    return np.array(
        [
            sum(np.sqrt(sum(unit**2 for unit in state) / len(state)) for state in sequence)
            / len(sequence)
            for sequence in states
        ]
    )


def records(writer: ncp.MemoryWriter, tag: str) -> dict[int, Any]:
    return {step: record for step, record in writer.records if record.tag == tag}


# --- the callback


def test_the_callback_logs_the_number_with_its_ci(names: dict[str, Any]) -> None:
    logged, training = records(names["writer"], "state_norm/mean"), names["training"]
    assert list(logged) == [5, 10]
    for step, record in logged.items():
        by_sequence = rms_by_sequence(training.states[step])
        assert record.value == pytest.approx(by_sequence.mean(), rel=1e-5)
        expected = jackknife.ci_by_leaving_out(np.mean, by_sequence, "log")
        assert record.ci == pytest.approx(expected, rel=1e-5)
        assert record.ci[0] < record.value < record.ci[1]
        assert "95 % CI over sequences" in record.description


def test_the_callback_compares_with_the_previous_snapshot(names: dict[str, Any]) -> None:
    logged, states = records(names["writer"], "state_norm/mean_change"), names["training"].states
    assert list(logged) == [10]
    before, now = (rms_by_sequence(states[step]).mean() for step in (5, 10))
    assert logged[10].value == pytest.approx(now / before - 1, rel=1e-4)
    assert names["writer"].scalars("state_norm/numbers_changed") == [(10, 1)]


def test_the_picture_is_drawn_and_changes(names: dict[str, Any]) -> None:
    pictures = records(names["writer"], "state_norm/curve")
    # The observer's process has drawn them.
    assert [type(picture) for picture in pictures.values()] == [ncp.Picture] * 2
    first, second = (picture.png for picture in pictures.values())
    assert first != second
    plot = sys.modules["state_norm.plot"].plot_state_rms
    figure = plot(np.array([0.5, 1.0]), step=1500, limit=2.0)
    assert isinstance(figure, matplotlib.figure.Figure)
    (axes,) = figure.axes
    assert axes.get_ylim() == (0, 2.0)
    assert axes.get_title() == "RMS state · step 1,500"
    assert axes.lines[0].get_ydata().tolist() == [0.5, 1.0]


def test_the_analysis_of_the_guide(names: dict[str, Any]) -> None:
    state_rms = sys.modules["state_norm.analysis"].state_rms
    # The RMS are 5 and 0, then 1 and 10.
    states = np.array([[[1.0, 7.0], [0.0, 0.0]], [[1.0, -1.0], [-2.0, 14.0]]])
    by_time_step, by_sequence = state_rms(states)
    np.testing.assert_allclose(by_time_step, [3, 5])
    np.testing.assert_allclose(by_sequence, [2.5, 5.5])
    by_time_step, by_sequence = state_rms(states, np.array([[True, False], [True, True]]))
    np.testing.assert_allclose(by_time_step, [3, 10])
    np.testing.assert_allclose(by_sequence, [5, 5.5])


@pytest.mark.parametrize("background", [True, False])
def test_an_interrupted_run_continues_with_the_state(
    names: dict[str, Any], background: bool
) -> None:
    def run(steps: range, training: Training, state: Any = None) -> tuple[dict[Any, Any], Any]:
        """Return the records of the callback by tag and step, and the state as JSON."""
        writer = ncp.MemoryWriter()
        monitor = ncp.Monitor(
            training.model, training.held_out, [names["StateNorm"]()], writer=writer, every=1,
            background=background,
        )  # fmt: skip
        if state is not None:
            monitor.load_state_dict(json.loads(state))
        with monitor:
            for step in steps:
                training.step(step)
                monitor.on_step_end(step)
            state = json.dumps(monitor.state_dict())
        logged = {
            (record.tag, step): getattr(record, "png", getattr(record, "options", record))
            for step, record in writer.records
            if record.tag.startswith("state_norm/")
        }
        return logged, state

    whole, _ = run(range(1, 5), Training())
    training = Training()
    first, state = run(range(1, 3), training)
    second, _ = run(range(3, 5), training, state)
    assert whole == first | second
    assert [step for tag, step in whole if tag == "state_norm/curve"] == [1, 2, 3, 4]
    # Step 3 has a change only if the numbers of step 2 were restored.
    assert {step for tag, step in second if tag == "state_norm/mean_change"} == {3, 4}
    afresh, _ = run(range(5, 7), training)
    assert {step for tag, step in afresh if tag == "state_norm/mean_change"} == {6}


def test_the_limit_never_shrinks_after_it_was_restored(names: dict[str, Any]) -> None:
    callback = names["StateNorm"]()
    callback.load_state_dict({"limit": 50.0, "changes": {}})
    writer, training = ncp.MemoryWriter(), names["training"]
    with ncp.Monitor(
        training.model, training.held_out, [callback], writer=writer, every=1, background=False
    ) as monitor:
        monitor.on_step_end(1)
    (figure,) = records(writer, "state_norm/curve").values()
    assert figure.options["limit"] == 50.0


def test_the_table_of_the_callback_lists_what_it_logs(names: dict[str, Any]) -> None:
    declared = dict(TABLE_TAG.findall(names["StateNorm"].__doc__))
    kinds = {ncp.Scalar: "scalar", ncp.Picture: "image"}
    logged = {
        record.tag: kinds[type(record)]
        for _, record in names["writer"].records
        if record.tag.startswith("state_norm/")
    }
    assert logged == declared


def test_the_callback_does_not_apply_to_a_model_without_a_cell(names: dict[str, Any]) -> None:
    held_out = ncp.HeldOutBatch(np.ones((20, 4, 3), np.float32))
    writer = ncp.MemoryWriter()
    model = Squares(np.ones((4, 3), np.float32))
    with ncp.Monitor(model, held_out, [names["StateNorm"]()], writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        notes = list(monitor.notes)
    assert not records(writer, "state_norm/mean")
    assert any("state_norm" in note.lower() for note in notes), notes


def test_the_folder_of_a_callback_is_short() -> None:
    blocks = [block for block in BLOCK.finditer(GUIDE) if block["file"]]
    assert [Path(block["file"]).name for block in blocks] == [
        "analysis.py", "plot.py", "callback.py",
    ]  # fmt: skip
    code = "".join(block["code"] for block in blocks)
    assert len([line for line in code.splitlines() if line.strip()]) < 80
    imported = re.findall(r"^(?:import|from) (\S+)", blocks[0]["code"], re.MULTILINE)
    assert imported == ["numpy"]
    imported = re.findall(r"^(?:import|from) (\S+)", blocks[1]["code"], re.MULTILINE)
    assert imported == ["matplotlib.figure"]


# --- the attribution method


def squares() -> tuple[Squares, np.ndarray, np.ndarray]:
    """Return a model, inputs, and the terms of its sums ``(B, T, F)``."""
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(4, 3)).astype(np.float32)
    x = rng.uniform(-2.0, 2.0, (20, 4, 3)).astype(np.float32)
    return Squares(weights), x, weights.astype(np.float64) * x.astype(np.float64) ** 2


def test_the_method_in_gradient_attribution(names: dict[str, Any]) -> None:
    model, x, terms = squares()
    writer = ncp.MemoryWriter()
    callback = ncp.GradientAttribution(method=names["Midpoint"]())
    with ncp.Monitor(
        model, ncp.HeldOutBatch(x), [callback], writer=writer, every=1, on_error="raise"
    ) as monitor:
        monitor.on_step_end(1)
    # From zeros, the slope of w x^2 halfway times x is w x^2 itself.
    ((_, strength),) = writer.scalars("attribution/strength")
    assert strength == pytest.approx(np.abs(terms).sum(axis=(1, 2)).mean(), rel=1e-5)
    assert writer.scalars("attribution/completeness_error")[0][1] < 1e-5
    assert writer.scalars("attribution/incomplete") == [(1, 0.0)]
    arrays = records(writer, "_ncp/attribution_strength")
    np.testing.assert_allclose(arrays[1].values, np.abs(terms).mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("where", [0.5, 0.4])
def test_the_method_in_interpret_model(names: dict[str, Any], where: float) -> None:
    model, x, terms = squares()
    found = ncp.interpret_model(model, x, method=names["Midpoint"](where=where))
    assert (found.importance.method, found.importance.label) == ("midpoint", "midpoint gradient")
    expected = np.abs(2 * where * terms).mean(axis=0)
    np.testing.assert_allclose(found.importance.importance, expected, rtol=1e-5)


def test_baselines_reach_the_method_in_interpret_model(names: dict[str, Any]) -> None:
    model, x, _ = squares()
    found = ncp.interpret_model(model, x, method=names["Midpoint"](), baseline="mean")
    weights, inputs = np.array(model.w, np.float64), x.astype(np.float64)
    # Halfway from b to x, the slope is w (b + x), and times x - b it is w (x^2 - b^2).
    mean = inputs.mean(axis=(0, 1))
    expected = np.abs(weights * (inputs**2 - mean**2)).mean(axis=0)
    np.testing.assert_allclose(found.importance.importance, expected, rtol=1e-4)


def test_the_blocks_of_the_method_attribute_a_recurrent_model(names: dict[str, Any]) -> None:
    assert list(records(names["method_writer"], "attribution/strength")) == [100]
    training = names["training"]
    x = mx.array(training.held_out.inputs)

    def target(inputs: mx.array) -> mx.array:
        return training.model(inputs)[:, -1, 0].sum()

    gradient = np.array(mx.grad(target)(0.4 * x), np.float64)
    expected = np.abs(gradient * np.array(x, np.float64)).mean(axis=0)
    found = names["interpretation"].importance.importance
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_the_table_of_properties_is_complete(names: dict[str, Any]) -> None:
    own = {name for name in AttributionMethod.__annotations__ if not name.startswith("_")}
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", GUIDE, re.MULTILINE)
    assert own <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    for name in own - {"name", "label", "incomplete_fix"}:
        (default,) = re.findall(rf"^\| `{name}` \|.*\| `(.+?)` \|$", GUIDE, re.MULTILINE)
        assert repr(getattr(AttributionMethod, name)).replace("'", '"') == default
    assert names["Midpoint"].name not in {method.name for method in BUILT_IN}


# --- the writer


def test_the_writer_prints(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    names["PrintWriter"]().write(7, [ncp.Scalar("a/b", 0.5), ncp.Text("a/c", "hello")])
    assert capsys.readouterr().out == "     7 a/b 0.5\n"


def test_the_writer_gets_the_records_of_a_monitor(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    training = names["training"]
    with ncp.Monitor(
        training.model, training.held_out, [names["StateNorm"](every=1)],
        writer=names["PrintWriter"](), every=1,
    ) as monitor:  # fmt: skip
        monitor.on_step_end(3, loss=0.25)
    states = np.array(training.model.rnn(mx.array(training.held_out.inputs)), np.float64)
    printed = capsys.readouterr().out.splitlines()
    assert f"     3 state_norm/mean {rms_by_sequence(states).mean():.3g}" in printed
    assert "     3 train/loss 0.25" in printed


# --- the rule


def test_the_rule_finds_a_large_state(names: dict[str, Any]) -> None:
    finding, facts = names["finding"], names["facts"]
    assert finding.sentence == "The RMS state is 1.7."
    assert (finding.rule, finding.step) == ("large_state", 100)
    assert finding.numbers == {"state_norm/mean": 1.7}
    rule, run = names["LargeState"](), facts.run
    for value, ci, found in ((0.9, None, 0), (1.1, None, 1), (1.1, (0.9, 1.3), 0)):
        record = ncp.Scalar("state_norm/mean", value, ci=ci)
        collected = names["Collected"](run, [rule])
        assert len(names["judge"](collected.add_snapshot(1, [record]), [rule])) == found
    assert not names["judge"](names["Collected"](run, [rule]).facts(), [rule])


# --- the rest


def test_commands_and_paths_exist() -> None:
    paths = re.findall(r"`(?:python )?((?:tests/|\.ci/|ncp_callbacks/)[\w./]*)", GUIDE)
    assert len(paths) > 8
    for path in paths:
        assert (ROOT / path).exists(), path
    table = GUIDE[GUIDE.index("| folder or module") : GUIDE.index("A module imports only")]
    cells = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)[2:]
    for name in (name for cell in cells for name in re.findall(r"`([\w./<>]+)`", cell)):
        assert (ROOT / "ncp_callbacks" / name.removesuffix("<name>/")).exists(), name
