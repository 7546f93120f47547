"""Test the changes of parameters and the norms of gradients against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from test_findings import n, of, severities

import ncp_callbacks as ncp
from ncp_callbacks.analysis import parameter_changes
from ncp_callbacks.parameter_groups import parameter_groups

X = np.random.default_rng(0).standard_normal((4, 5, 2)).astype(np.float32)


class Net(nn.Module):
    """A recurrent layer and a read-out, of known parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(2, 3), nn.Linear(3, 1, bias=False)
        self.head.weight = mx.array([[3.0, 0.0, 4.0]])

    def __call__(self, x: mx.array) -> mx.array:
        out: mx.array = self.head(self.rnn(x))
        return out


def logged(writer: ncp.MemoryWriter, step: int) -> dict[str, float]:
    return {r.tag: r.value for s, r in writer.records if s == step and isinstance(r, ncp.Scalar)}


# ---- the numbers


def test_a_change_is_in_parts_of_the_size_and_per_step() -> None:
    before = {"a.weight": np.array([3.0, 4.0]), "b.weight": np.array([[12.0]])}
    now = {"a.weight": np.array([3.0, 4.5]), "b.weight": np.array([[12.0]])}
    found = parameter_changes(before, now, steps=10)
    larger = math.hypot(3.0, 4.5)
    assert found.by_part["a"] == pytest.approx(0.5 / larger / 10)
    assert found.by_part["b"] == 0
    assert found.total == pytest.approx(0.5 / math.hypot(larger, 12.0) / 10)
    assert found.unchanged == ("b.weight",)


def test_biases_that_begin_at_0_have_moved_by_all_of_their_size() -> None:
    found = parameter_changes({"bias": np.zeros(3)}, {"bias": np.ones(3)}, steps=1)
    assert found.total == 1
    still = parameter_changes({"bias": np.zeros(3)}, {"bias": np.zeros(3)}, steps=1)
    assert (still.total, still.unchanged) == (0, ("bias",))


def test_new_reshaped_and_damaged_arrays_are_skipped() -> None:
    before = {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2), "huge": np.full(1, 1e30, "f")}
    now = {"a": np.ones(3), "b": np.array([1, np.nan]), "c": np.ones(2), "new": np.ones(1)}
    found = parameter_changes(before, now | {"huge": np.full(1, 2e30, "f")}, steps=2)
    assert found.unchanged == ("c",)
    assert found.by_part == {"c": 0, "huge": pytest.approx(0.25)}


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        ({"rnn.a.w": 1, "rnn.b": 2, "d.w": 1}, {"rnn": ["rnn.a.w", "rnn.b"], "d": ["d.w"]}),
        ({"m.rnn.w": 1, "m.head.w": 1}, {"m.rnn": ["m.rnn.w"], "m.head": ["m.head.w"]}),
        ({"cell.w": 1, "cell.b": 1}, {"cell.w": ["cell.w"], "cell.b": ["cell.b"]}),
        ({"w": 7}, {"w": ["w"]}),
        ({"a.w": 7}, {"a.w": ["a.w"]}),
        (
            {"a.w": 1, "b.w": 9, "c.w": 8, "d.w": 2, "e.w": 7},
            {"b": ["b.w"], "c": ["c.w"], "e": ["e.w"], "others": ["a.w", "d.w"]},
        ),
        ({}, {}),
    ],
)  # fmt: skip
def test_parts_are_those_where_names_differ(
    names: dict[str, int], groups: dict[str, list[str]]
) -> None:
    assert parameter_groups(names) == groups


# ---- in a monitor


@pytest.mark.parametrize("background", [False, True])
def test_a_monitor_logs_the_changes_between_snapshots(background: bool) -> None:
    model, writer = Net(), ncp.MemoryWriter()
    model.rnn.freeze(keys="Whh")
    with ncp.Monitor(
        model, ncp.HeldOutBatch(X), [ncp.ParameterUpdates()],
        writer=writer, every=2, background=background,
    ) as monitor:  # fmt: skip
        for step in range(1, 5):
            if step == 3:
                model.head.weight = model.head.weight + mx.array([[0.0, 0.3, 0.0]])
            monitor.on_step_end(step)
    first = {tag for tag in logged(writer, 2) if tag.startswith("parameters/")}
    assert first == {"parameters/norm", "parameters/nonfinite"}
    found = logged(writer, 4)
    assert found["parameters/update_head"] == pytest.approx(
        0.3 / math.hypot(3.0, 0.3, 4.0) / 2, rel=1e-5
    )
    assert found["parameters/update_rnn"] == 0
    everything = [a for name, a in tree_flatten(model.parameters()) if not name.endswith("Whh")]
    norm = np.linalg.norm(np.concatenate([np.array(a).ravel() for a in everything]))
    assert found["parameters/norm"] == pytest.approx(norm, rel=1e-6)
    # Whh is frozen; Wxh and the bias stay as they were.
    assert found["parameters/unchanged"] == 2
    assert [f.rule for f in monitor.findings if f.rule == "untrained_parts"]


def test_a_model_that_trains_nothing_is_skipped_with_the_reason() -> None:
    model = Net()
    model.freeze()
    with ncp.Monitor(
        model, ncp.HeldOutBatch(X), [ncp.ParameterUpdates()], writer=ncp.MemoryWriter()
    ) as monitor:
        assert any("unfreeze some" in note for note in monitor.notes)


def test_gradients_are_logged_by_part_and_training_is_as_without_them() -> None:
    def train(monitor: ncp.Monitor | None) -> tuple[mx.array, list[Any]]:
        mx.random.seed(0)
        model, seen = Net(), []
        gradient = nn.value_and_grad(model, lambda m, x: (m(x) ** 2).mean())
        optimizer = optim.SGD(0.1)
        for step in range(1, 4):
            loss, gradients = gradient(model, mx.array(X))
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            seen.append(gradients)
            if monitor is not None:
                monitor.on_step_end(step, loss=loss, gradients=gradients)
        return model.head.weight, seen

    writer = ncp.MemoryWriter()
    with ncp.Monitor(
        Net(), ncp.HeldOutBatch(X), [ncp.ParameterUpdates()], writer=writer, train_every=1
    ) as monitor:
        weight, gradients = train(monitor)
    assert np.array_equal(np.array(weight), np.array(train(None)[0]))
    for step, tree in enumerate(gradients, start=1):
        found = logged(writer, step)
        head = np.linalg.norm(np.array(tree["head"]["weight"]))
        rnn = math.sqrt(sum(np.sum(np.array(a, np.float64) ** 2) for a in tree["rnn"].values()))
        assert found["parameters/gradient_head"] == pytest.approx(head, rel=1e-5)
        assert found["parameters/gradient_rnn"] == pytest.approx(rnn, rel=1e-5)
        assert found["train/grad_norm"] == pytest.approx(math.hypot(head, rnn), rel=1e-5)


@pytest.mark.parametrize("wrong", [0.3, {}, {"head": "none"}])
def test_what_is_no_tree_of_gradients_is_reported_once(wrong: Any) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(
        Net(), ncp.HeldOutBatch(X), [ncp.ParameterUpdates()], writer=writer, train_every=1
    ) as monitor:
        for step in (1, 2):
            monitor.on_step_end(step, loss=1.0, gradients=wrong)
        (note,) = [note for note in monitor.notes if note.startswith("gradients is not logged")]
        assert "pass what nn.value_and_grad returned" in note
    assert {"train/loss"} <= logged(writer, 2).keys()
    assert "train/grad_norm" not in logged(writer, 2)


def test_gradients_have_cards_behind_the_training_curves(tmp_path: Any) -> None:
    model = Net()
    with ncp.Monitor(
        model, ncp.HeldOutBatch(X), "light", log_dir=tmp_path / "run", train_every=1, verbose=False
    ) as monitor:
        monitor.on_step_end(1, loss=1.0, gradients=model.trainable_parameters())
    run = ncp.runs.read_run(tmp_path / "run")
    assert run.scalars["parameters/gradient_head"].values[-1] == pytest.approx(5.0)
    raw = b"".join(p.read_bytes() for p in (tmp_path / "run").glob("events*"))
    assert b"xai_parameters/gradient_head" in raw


# ---- the rule


def test_the_rule_names_parts_that_stay_while_others_move() -> None:
    numbers = {
        "parameters/unchanged": n(2),
        "parameters/update": n(1e-3),
        "parameters/update_head": n(0.0),
        "parameters/update_rnn": n(2e-3),
    }
    (finding,) = of("untrained_parts", numbers=numbers)
    assert "2 trainable arrays have not changed" in finding.sentence
    assert "all of head" in finding.sentence
    assert severities("untrained_parts", numbers=numbers | {"parameters/unchanged": n(0)}) == []
    # Where nothing moves, another rule speaks.
    assert severities("untrained_parts", numbers=numbers | {"parameters/update": n(0.0)}) == []
