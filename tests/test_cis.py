"""Test that no callback forgets a CI, and that descriptions say what they are."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map
from ncps.wirings import AutoNCP
from promises import told

import ncp_callbacks as ncp
from ncp_callbacks.callbacks import callback_set
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.runs import read_run

# Numbers without a CI over sequences, and why.
EXACT = {
    # Counts.
    r".*nonfinite": "a count",
    r".*/sequences": "a count",
    r".*/extra_passes": "a count",
    r".*/numbers_changed": "a count, of tests that are corrected for their number",
    r"hidden/basis_refits": "a count",
    # Units or synapses on one side of a threshold: jumps with no number of each sequence.
    r"transitions/dead_units": "a count of units",
    r"backbone/layer\d_dead_units": "a count of units",
    r"dynamics/undecayed": "a share of units beyond what can be told",
    r"dynamics/beyond_chance": "a share of units by a test",
    r"wiring/silent_synapses": "a share of synapses below a threshold",
    # Checks of numerics: the worst of what was seen is what matters.
    r"time_constants/reading_error": "rounding, if all is well",
    r"time_constants/outside_bounds": "a count, 0 if all is well",
    r"wiring/balance_error": "rounding, if all is well",
    r".*/completeness_error": "the worst of these sequences",
    r".*/incomplete": "how many of these sequences are that bad",
    # The most extreme of what was seen is no mean: more sequences have a larger one.
    r"transitions/speed_max": "a maximum",
    r"dynamics/unit_speed_q\d+": "of maxima",
    r"dynamics/target_correlation_(max|q\d+)": "sizes that noise makes larger: chance is logged",
    r".*/sign_agreement": "a size that noise makes larger",
    r".*/entropy(_random)?": "a size that noise makes smaller where shares are nearly equal",
    # Of the held-out intervals, not of the model.
    r"time_delta/outside_x.*": "exact: the held-out batch stays as it is",
    # Of a map, whose own check they are.
    r".*/reliability": "how sure the map is",
    r"attribution/(change|rank_distance)": "a distance, larger by noise",
    r"attribution/disputed": "a count, of features",
    r"attribution/disagreement": "chance makes it larger: CIs that were tried cover too rarely",
    r"attribution/effective_sequences": "a count, of the sequences themselves",
    r"hidden/basis_captured": "chance makes it smaller: CIs that were tried cover too rarely",
    r"meanings/explained": "how many units are described",
    # Of the parameters, of which there is one set.
    r"parameters/.*": "no statistic over sequences",
    # Of one sequence.
    r"predictions/.*": "no statistic over sequences",
}
NAMES = [
    "ablation", "attribution", "time_delta", "transitions", "hidden", "backbone", "removal",
    "gradient_reach", "meanings", "sampling", "parameters",
    "time_constants", "wiring", "dynamics", "output_time", "interactions", "faithfulness",
    "sanity_check", "predictions",
]  # fmt: skip


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        np.random.seed(0)  # noqa: NPY002 (AutoNCP draws its wiring from it)
        wired = {"ltc": lambda: LTC(3, AutoNCP(9, 2)), "cfc": lambda: CfC(3, 8, backbone_units=6)}
        self.rnn = wired[kind.split()[0]]()
        self.head = nn.Linear(8 if kind.startswith("cfc") else 2, 3)
        self._every = kind.endswith("every")

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        out = self.rnn(x, time_delta)[0]
        return self.head(out if self._every else out[:, -1])


def batch(size: int = 20, seed: int = 0) -> ncp.HeldOutBatch:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((size, 7, 3)).astype(np.float32)
    return ncp.HeldOutBatch(x, rng.uniform(0.5, 2.0, (size, 7)).astype(np.float32))


def stir(model: nn.Module, step: int, by: float = 0.02) -> None:
    """As training would."""
    key = mx.random.key(step)
    model.update(
        tree_map(
            lambda p: p * (1 + by * mx.random.normal(p.shape, key=key)),
            model.trainable_parameters(),
        )
    )


def looked(
    kind: str, callbacks: Any, size: int = 20, writer: Any = None, by: float = 0.02
) -> tuple[Any, tuple[str, ...]]:
    mx.random.seed(0)
    model, writer = Net(kind), writer or ncp.MemoryWriter()
    with ncp.Monitor(
        model, batch(size), callbacks, writer=writer, every=1, on_error="raise"
    ) as monitor:
        for step in range(1, 4):
            stir(model, step, by)
            monitor.on_step_end(step)
        return writer, monitor.notes


def everything() -> list[ncp.Callback]:
    callbacks = [*callback_set("full"), ncp.SinglePredictions()]
    for callback in callbacks:
        callback.every_nth = 1
    return callbacks


@functools.cache
def scalars(size: int = 20) -> dict[str, dict[str, list[ncp.Scalar]]]:
    """All scalars of all callbacks, by their group."""
    found: dict[str, dict[str, list[ncp.Scalar]]] = defaultdict(lambda: defaultdict(list))
    for kind in ("cfc", "ltc", "cfc every"):
        writer, _ = looked(kind, everything(), size)
        for step, record in writer.records:
            if step and isinstance(record, ncp.Scalar):
                group = re.sub(r"_(share|pair|change|accuracy)$", "", record.tag.split("/")[0])
                found[group][record.tag].append(record)
    return found


def exact(tag: str) -> bool:
    return any(re.fullmatch(pattern, tag) for pattern in EXACT)


def test_these_are_all_callbacks() -> None:
    assert set(scalars()) == {*NAMES, "monitor"}


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_ci_or_a_reason_for_none(name: str) -> None:
    for tag, records in scalars()[name].items():
        have = [record.ci is not None for record in records]
        if exact(tag):
            assert not any(have), f"{tag} is on the list of numbers without, but has one"
        elif not any(have):
            # A share that is 0, or 1, in all sequences: there is nothing to tell it from.
            at_end = {record.value for record in records} in ({0.0}, {1.0})
            known = at_end and "with a 95 % CI" in records[0].description
            assert known, (
                f"{tag} has no CI over sequences: add one, or add it to EXACT with the "
                "reason why not"
            )


def test_no_reason_is_left_over() -> None:
    tags = [tag for group in scalars().values() for tag in group]
    for pattern in EXACT:
        if "incomplete" not in pattern and "outside_bounds" not in pattern:
            assert any(re.fullmatch(pattern, tag) for tag in tags), pattern


@pytest.mark.parametrize("name", NAMES)
def test_cis_hold_their_number_and_say_what_they_are(name: str) -> None:
    for tag, records in scalars()[name].items():
        for record in records:
            if record.ci is None:
                continue
            low, high = record.ci
            assert low <= high
            # Too small where states are few; the interval is without that.
            if not tag.endswith("participation_ratio"):
                slack = 1e-5 * max(abs(record.value), 1e-6)
                assert low - slack <= record.value <= high + slack, record
            assert "with a 95 % CI over sequences" in record.description, tag


# Of how many of 20 sequences numbers are, where it isn't all.
FEW = {"time_constants", "wiring", "output_time", "interactions",
       "faithfulness", "sanity_check"}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_cis_of_few_sequences_are_marked(name: str) -> None:
    for size in (20, 6):
        for tag, records in scalars(size)[name].items():
            of_few = size == 6 or name in FEW
            jacobian = ("finite_time", "stability", "linear_memory", "radius", "norm_q")
            if name == "dynamics" and tag.split("/")[1].startswith(jacobian):
                of_few = True
            for record in records:
                if record.ci is not None:
                    assert ("unreliable" in record.description) == of_few, (size, tag)


def test_a_small_batch_is_reported_once() -> None:
    _, notes = looked("cfc", everything(), 6)
    assert len(notes) - len(told(notes)) == 1
    assert any(
        note.startswith("the held-out batch has 6 sequences: with fewer than") for note in notes
    )
    _, notes = looked("cfc", everything(), 16)
    assert told(notes) == notes


@pytest.mark.parametrize("size", [6, 20])
def test_captions_say_it_too(size: int) -> None:
    writer, _ = looked("cfc", None, size)
    captions = {r.tag: r.description for _, r in writer.records if isinstance(r, ncp.Figure)}
    for tag in ("attribution/heatmap", "time_delta/curve"):
        assert "95 % CI" in captions[tag]
        assert ("unreliable" in captions[tag]) == (size == 6)
    guide = [r.markdown for _, r in writer.records if r.tag == "monitor/guide"][-1]
    assert ("unreliable" in guide) == (size == 6)


def test_cis_are_in_the_log(tmp_path: Path) -> None:
    mx.random.seed(0)
    model = Net("cfc")
    with ncp.Monitor(model, batch(), log_dir=tmp_path / "run", every=1) as monitor:
        for step in (1, 2):
            stir(model, step)
            monitor.on_step_end(step)
    memory, _ = looked("cfc", None)
    with_interval = {
        r.tag for _, r in memory.records if isinstance(r, ncp.Scalar) and r.ci is not None
    }
    run = read_run(tmp_path / "run")
    clean = {re.sub(r"[^-/\w.]", "_", tag) for tag in with_interval}
    assert {tag for tag in clean if not tag.endswith("_change")} <= set(run.ci)
    assert not any(tag.startswith("_ncp/ci") for tag in run.arrays)


# --- changes


def values(writer: ncp.MemoryWriter, ending: str) -> dict[str, list[float]]:
    return {
        tag: [value for _, value in writer.scalars(tag)]
        for tag in writer.tags
        if tag.endswith(ending)
    }


CHANGES = {
    "attribution/strength_change", "time_delta/sensitivity_change",
    "transitions/magnitude_change", "hidden/participation_change", "removal/strength_change",
}  # fmt: skip


def test_a_model_that_stays_as_it_is_has_not_changed() -> None:
    writer, _ = looked("cfc", None, by=0.0)
    assert set(values(writer, "_change")) == CHANGES
    for tag, curve in {**values(writer, "_change"), **values(writer, "numbers_changed")}.items():
        # Of three steps, features are removed at the first and the last.
        assert curve == ([0.0] if tag.startswith("removal/") else [0.0, 0.0]), tag


def test_a_model_that_was_turned_over_has() -> None:
    writer, _ = looked("cfc", None, by=1.0)
    counts = values(writer, "numbers_changed")
    assert set(counts) == {
        f"{group}/numbers_changed"
        for group in (
            "attribution", "removal", "time_delta", "transitions", "hidden", "backbone",
        )
    }  # fmt: skip
    for group in ("attribution", "transitions", "backbone"):
        assert max(counts[f"{group}/numbers_changed"]) >= 1, counts
    # Relative changes are those of the curves themselves.
    curve = [value for _, value in writer.scalars("transitions/magnitude_mean")]
    relative = [after / before - 1 for before, after in pairwise(curve)]
    np.testing.assert_allclose(values(writer, "magnitude_change").popitem()[1], relative, rtol=1e-4)


def run(callbacks: list[ncp.Callback], sizes: list[Any], state: Any = None) -> tuple[Any, Any]:
    """Looks at batches one after the other, of a model that changes."""
    mx.random.seed(0)
    model, writer = Net("cfc"), ncp.MemoryWriter()
    for step, held_out in enumerate(sizes, start=1):
        stir(model, step)
        with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1) as monitor:
            if state is not None:
                monitor.load_state_dict(state)
            monitor.on_step_end(step)
            state = monitor.state_dict()
        callbacks = [type(callback)() for callback in callbacks]
    return writer, state


def test_changes_survive_an_interruption() -> None:
    made = [ncp.GradientAttribution, ncp.TimeSensitivity, ncp.StateTransitions, ncp.StateSpace,
            ncp.BackboneActivations, ncp.TimeConstants, ncp.Dynamics]  # fmt: skip
    through, _ = looked("cfc", [make() for make in made])
    broken, _ = run([make() for make in made], [batch()] * 3)
    for ending in ("_change", "numbers_changed"):
        whole, again = values(through, ending), values(broken, ending)
        assert set(whole) == set(again)
        for tag, curve in whole.items():
            np.testing.assert_allclose(again[tag], curve, rtol=1e-3, atol=1e-5, err_msg=tag)


def test_other_sequences_are_not_compared() -> None:
    """Of as many sequences, but others, nothing is said to have changed."""
    made = [ncp.GradientAttribution, ncp.StateTransitions, ncp.StateSpace]
    writer, _ = run([make() for make in made], [batch(seed=0), batch(seed=1), batch(seed=1)])
    for group in ("attribution", "transitions", "hidden"):
        assert [step for step, _ in writer.scalars(f"{group}/numbers_changed")] == [3]


def test_sequences_that_are_lost_are_not_compared() -> None:
    """With one gone, it can't be told which of those before is which."""

    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 7, 3)).astype(np.float32)
    x[3] = 1e30
    held_out = ncp.HeldOutBatch(x, np.ones((20, 7), np.float32))

    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = mx.ones((3,))

        def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
            return (x**2 * self.w * (1 if time_delta is None else time_delta[..., None])).sum(
                axis=(1, 2)
            )[:, None]

    # A mean of the batch as baseline would be lost, and with it all sequences.
    callback = ncp.GradientAttribution(method="input_x_gradient", baseline="zeros")
    writer = ncp.MemoryWriter()
    with ncp.Monitor(Squares(), held_out, [callback], writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        monitor.on_step_end(2)
    assert writer.scalars("attribution/nonfinite")[-1] == (2, 1)
    assert not writer.scalars("attribution/numbers_changed")


def test_tokens_are_the_same_whatever_they_are_embedded_as() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn = nn.Embedding(11, 4), CfC(4, 6, backbone_units=5)

        def __call__(self, x: mx.array) -> mx.array:
            return self.rnn(self.embedding(x))[0][:, -1]

    mx.random.seed(0)
    model, writer = Reader(), ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(np.random.default_rng(0).integers(0, 11, (20, 6)))
    with ncp.Monitor(model, held_out, writer=writer, every=1) as monitor:
        for step in (1, 2):
            stir(model, step)
            monitor.on_step_end(step)
    for group in ("attribution", "transitions", "hidden", "backbone"):
        assert [step for step, _ in writer.scalars(f"{group}/numbers_changed")] == [2], group
