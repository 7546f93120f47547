"""Rules report what is planted in hand-made numbers, and nothing where it isn't."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given

import ncp_callbacks as ncp
from ncp_callbacks.findings import (
    RULES,
    Collected,
    Curve,
    Facts,
    Finding,
    Number,
    Past,
    Rule,
    RunFacts,
    Severity,
    Topic,
    card,
    judge,
    lines,
    to_json,
)  # fmt: skip
from ncp_callbacks.findings.curve import MAX_WINDOWS
from ncp_callbacks.findings.judge import MAX_CURVES, MAX_PAST
from ncp_callbacks.findings.rules.rests_on import last_steps
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import CfC
from ncp_callbacks.run_facts import chance_outputs, run_facts
from ncp_callbacks.runs.findings import findings_of

RUN = RunFacts(
    sequences=32,
    time_steps=24,
    feature_names=("vibration", "heat", "load"),
    takes_time=True,
    callbacks={
        "attribution": "attribution",
        "integrated_gradients": "attribution",
        "transitions": "transitions",
    },
)


def n(value: float, low: float = math.nan, high: float = math.nan, step: int = 100) -> Number:
    return Number(value, low, high, 32, step)


def curve(values: Any, first: int = 1) -> Curve:
    found = Curve()
    for step, value in enumerate(values, start=first):
        found = found.with_point(step, float(value))
    return found


def of(rule: str, run: RunFacts = RUN, **facts: Any) -> list[Finding]:
    """Return what one rule finds in hand-made facts."""
    (chosen,) = [r for r in RULES if r.name == rule]
    return list(chosen.check(Facts(run, 100, **facts)))


def severities(rule: str, run: RunFacts = RUN, **facts: Any) -> list[str]:
    return [finding.severity.value for finding in of(rule, run, **facts)]


# --- the contract of all rules


def test_names_differ_and_rules_are_documented() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert isinstance(rule.topic, Topic)
        assert len((type(rule).__doc__ or "").split()) > 15, rule.name
        assert set(rule.remembers) <= set(rule.reads), rule.name


def _facts() -> st.SearchStrategy[Facts]:
    """Return facts with any of the numbers that rules read, in any state."""
    values = st.one_of(
        st.floats(allow_nan=True, allow_infinity=True),
        st.sampled_from([0.0, 1.0, 0.5, 0.96, 1e-9, 30.0]),
    )
    tags = sorted({
        pattern.replace("attribution*_share/*", "attribution_share/vibration").replace("*", "x1")
        for rule in RULES
        for pattern in rule.reads
        if not pattern.startswith("_ncp")
    })  # fmt: skip

    @st.composite
    def number(draw: st.DrawFn) -> Number:
        ends = sorted([draw(values), draw(values)])
        return Number(draw(values), *ends, draw(st.integers(0, 64)), draw(st.integers(0, 100)))

    numbers = st.dictionaries(st.sampled_from(tags), number(), max_size=len(tags))
    arrays = st.dictionaries(
        st.sampled_from([
            "_ncp/attribution_strength", "_ncp/attribution_time_delta",
            "_ncp/transitions_unit_speed_max", "_ncp/held_out_confusion",
            "_ncp/removal_blocks", "_ncp/removal_block_shares",
            "_ncp/attribution_confused", "_ncp/attribution_confused_shares",
            "_ncp/attribution_tokens",
        ]),
        st.sampled_from([
            np.zeros((24, 3)), np.full((24, 3), np.nan), np.zeros((0, 3)), np.zeros(7),
            np.ones((2, 24)), np.array(np.inf), np.eye(3), np.arange(8.0).reshape(2, 4),
            np.linspace(0, 1, 28).reshape(7, 4), np.full((3, 3), 20.0), np.array([0, 1, 9.0, 9]),
            np.ones((9, 4)), np.full((9, 2), -1.0), np.full((2, 5), 0.5), np.full((2, 5), np.nan),
        ]),
    )  # fmt: skip
    curves = st.dictionaries(
        st.sampled_from(["train/loss", "val/loss", "train/grad_norm"]),
        st.lists(values, max_size=70).map(curve),
    )
    history = st.lists(numbers, max_size=6).map(
        lambda many: tuple(Past(10 * i, numbers) for i, numbers in enumerate(many))
    )
    runs = st.sampled_from([
        RUN, RunFacts(), RunFacts(sequences=1, time_steps=1, feature_names=("x",)),
        RunFacts(sequences=9, class_names=("a", "b", "c"), class_counts=(9, 0, 0),
                 feature_sds=(0.0, math.nan, 1e9), padding=1.0, coupled=True),
    ])  # fmt: skip
    return st.builds(
        Facts, runs, st.just(100), numbers=numbers, arrays=arrays, history=history, curves=curves
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@given(facts=_facts())
def test_rules_take_any_numbers(rule: Rule, facts: Facts) -> None:
    for finding in rule.check(facts):
        assert finding.rule == rule.name
        assert (
            finding.sentence[0].isupper()
            or not finding.sentence[0].isalpha()
            or ("/" in finding.sentence.split()[0])
        )
        for text in (finding.sentence, finding.action):
            assert text.endswith("."), text
            assert "  " not in text, text
        assert finding.sentence != finding.action
        assert finding.step == 100
        assert Finding.from_json(json.loads(to_json([finding]))[0]).sentence == finding.sentence


def test_nothing_is_found_in_nothing() -> None:
    assert judge(Facts()) == ()
    assert "no rule" in card((), 7)


def test_a_rule_that_fails_costs_its_own_findings_only() -> None:
    class Broken(Rule):
        """Fail."""

        name, topic = "broken", Topic.DATA

        def check(self, facts: Facts) -> list[Finding]:
            raise ZeroDivisionError

    facts = Facts(RUN, 100, {"transitions/saturation": n(0.98)})
    assert judge(facts, (Broken(), *RULES)) == judge(facts) != ()


def test_findings_survive_json() -> None:
    found = judge(Facts(RUN, 100, {"transitions/saturation": n(0.98, 0.97, 0.99)}))
    assert tuple(Finding.from_json(f) for f in json.loads(to_json(found))) == found


def test_the_most_serious_come_first() -> None:
    facts = Facts(
        RUN,
        100,
        {"attribution/incomplete": n(0.0), "transitions/saturation": n(0.98),
         "attribution/time_share": n(0.9, 0.8, 0.95)},
    )  # fmt: skip
    ranks = [finding.severity.rank for finding in judge(facts)]
    assert ranks == sorted(ranks, reverse=True)
    assert {0, 3} <= set(ranks)


# --- planted truths


def test_what_it_rests_on_in_words() -> None:
    # Of 24 time steps the last 3 have 0.2 + 0.3 + 0.2 = 0.7 of the strength, 3 / 21 each before.
    profile = np.full(24, 0.3 / 21)
    profile[-3:] = 0.2, 0.3, 0.2
    found = of(
        "rests_on",
        numbers={
            "attribution/strength": n(2.0),
            "attribution_share/heat": n(0.28, 0.24, 0.33),
            "attribution_share/vibration": n(0.54, 0.49, 0.58),
            "attribution_share/load": n(0.18, 0.15, 0.21),
            "attribution/time_share": n(0.1, 0.08, 0.12),
        },
        arrays={"_ncp/attribution_strength": profile[:, None] * np.array([0.5, 0.3, 0.2])},
    )
    assert [f.sentence for f in found] == [
        "Of the attribution to inputs, vibration has 54 % [49, 58] and heat 28 % [24, 33]; the "
        "last 3 of 24 time steps hold 70 %; elapsed time has 10 % [8, 12] of inputs and time "
        "together."
    ]
    assert found[0].severity is Severity.INFO
    # What carries most comes first.
    (clocked,) = of(
        "rests_on",
        numbers={
            "attribution/strength": n(2.0),
            "attribution_share/heat": n(0.9, 0.85, 0.95),
            "attribution_share/load": n(0.1, 0.05, 0.15),
            "attribution/time_share": n(0.72, 0.66, 0.77),
        },
    )
    assert clocked.sentence.startswith(
        "Elapsed time has 72 % [66, 77] of inputs and time together; of the attribution to inputs, "
    )
    # The names of features that a tag can't hold are theirs again.
    run = RunFacts(feature_names=("mean (lead i)", "b"), callbacks=RUN.callbacks)
    tags = ("attribution_share/mean__lead_i_", "attribution_share/b")
    (other,) = of(
        "rests_on", run,
        numbers={"attribution/strength": n(1.0), tags[0]: n(0.9), tags[1]: n(0.1)},
    )  # fmt: skip
    assert "mean (lead i) has 90 %" in other.sentence


def test_attributions_that_are_all_zero_are_a_problem() -> None:
    assert severities("rests_on", numbers={"attribution/strength": n(0.0)}) == ["problem"]


@pytest.mark.parametrize(
    ("profile", "share", "steps", "held"),
    [([0.1, 0.2, 0.7], 0.7, 1, 0.7), ([0.25] * 4, 0.7, 3, 0.75), ([1.0, 0.0], 0.7, 2, 1.0)],
)
def test_last_steps(profile: list[float], share: float, steps: int, held: float) -> None:
    assert last_steps(np.array(profile), share) == (steps, pytest.approx(held))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (n(0.98, 0.97, 0.99), ["problem"]), (n(0.6, 0.55, 0.65), ["warning"]),
        (n(0.6, 0.45, 0.7), []), (n(0.2), []), (n(math.nan), []),
    ],
)  # fmt: skip
def test_saturation(number: Number, expected: list[str]) -> None:
    numbers = {"transitions/saturation": number}
    assert severities("saturated", numbers=numbers) == expected
    run = dataclasses.replace(RUN, chance_loss=1.0)
    for loss, fine in ((n(0.2, 0.1, 0.4), True), (n(0.9, 0.6, 1.2), False)):
        found = severities("saturated", run, numbers=numbers | {"held_out/loss": loss})
        assert found == (["info"] * len(expected) if fine else expected)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (n(0.75, 0.7, 0.8), "more than all inputs"), (n(0.0, 0.0, 0.0), "ignores"),
        (n(0.004, 0.002, 0.006), "ignores"), (n(0.55, 0.45, 0.65), ""), (n(0.1, 0.05, 0.2), ""),
        (n(0.005, 0.001, 0.02), ""),
    ],
)  # fmt: skip
def test_the_use_of_time(number: Number, expected: str) -> None:
    found = of("time_use", numbers={"attribution/time_share": number})
    assert len(found) == bool(expected)
    assert all(expected in f.sentence and f.severity is Severity.WARNING for f in found)


def test_incomplete_maps_by_group() -> None:
    numbers = {"attribution/incomplete": n(0.0), "integrated_gradients/incomplete": n(0.88)}
    good, bad = of("incomplete", numbers=numbers)
    assert (good.severity, bad.severity) == (Severity.GOOD, Severity.WARNING)
    assert severities("incomplete", numbers={"attribution/incomplete": n(0.3)}) == ["info"]
    for removed, severity in ((0.55, "info"), (0.75, "warning")):
        numbers = {
            "attribution/incomplete": n(0.9),
            "attribution/strength": n(1), "removal/strength": n(1),
            "attribution_share/heat": n(0.5), "attribution_share/load": n(0.5),
            "removal_share/heat": n(removed), "removal_share/load": n(1 - removed),
        }  # fmt: skip
        run = dataclasses.replace(
            RUN, callbacks={"attribution": "attribution", "removal": "removal"}
        )
        assert severities("incomplete", run, numbers=numbers) == [severity]
    assert "integrated_gradients" in bad.sentence
    assert "88 %" in bad.sentence


@pytest.mark.parametrize(("sequences", "expected"), [(15, ["warning"]), (16, []), (0, [])])
def test_few_sequences(sequences: int, expected: list[str]) -> None:
    assert severities("few_sequences", RunFacts(sequences=sequences)) == expected


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([1, 0.5, math.nan], ["problem"]), ([1, math.inf], ["problem"]), ([1, math.nan, 0.5], []),
     ([1, 0.5], []), ([], [])],
)  # fmt: skip
def test_a_loss_that_is_not_finite(losses: list[float], expected: list[str]) -> None:
    assert severities("diverged", curves={"train/loss": curve(losses)}) == expected


def test_analyses_that_are_not_finite() -> None:
    count = {"transitions/nonfinite": n(3)}
    assert severities("diverged", numbers=count) == ["problem"]
    others = {**count, "transitions/speed_mean": n(0.3)}
    assert severities("diverged", numbers=others) == ["warning"]
    # A number of an earlier snapshot is no sign of life.
    old = {**count, "transitions/speed_mean": n(0.3, step=20)}
    assert severities("diverged", numbers=old) == ["problem"]
    assert severities("diverged", numbers={"transitions/nonfinite": n(0)}) == []


# --- curves and history


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=700))
def test_curves_are_bounded_and_lose_no_point(values: list[float]) -> None:
    found = curve(values)
    assert len(found.windows) <= MAX_WINDOWS
    finite = [v for v in values if math.isfinite(v)]
    assert sum(w.count for w in found.windows) == len(finite)
    assert found.bad == len(values) - len(finite)
    if finite:
        assert min(w.low for w in found.finite) == min(finite)
        assert max(w.high for w in found.finite) == max(finite)
        mean = sum(w.mean * w.count for w in found.finite) / len(finite)
        assert mean == pytest.approx(np.mean(finite), abs=1e-6)
    assert [w.first for w in found.windows] == sorted({w.first for w in found.windows})
    again = Curve.from_state(json.loads(json.dumps(found.to_state())))
    assert json.dumps(again.to_state()) == json.dumps(found.to_state())


def _snapshot(step: int) -> list[ncp.Record]:
    return [
        ncp.Scalar("attribution/strength", step, ci=(step - 1, step + 1)),
        ncp.Scalar("attribution_share/heat", 0.1),
        ncp.Scalar("elsewhere/number", 1.0),
    ]


def test_history_is_bounded_and_keeps_its_ends() -> None:
    rules = (_Remembering(),)
    collected = Collected(RUN, rules)
    for step in range(1, 1001):
        facts = collected.add_snapshot(step, _snapshot(step))
        for number in range(100):
            collected.add_point(step, f"train/{number}", 1.0)
    assert len(facts.history) <= MAX_PAST
    steps = [step for step, _ in facts.past("attribution/strength")]
    assert steps[0] == 1
    assert steps[-3:] == [998, 999, 1000]
    assert steps == sorted(set(steps))
    assert len(facts.curves) == MAX_CURVES
    assert "elsewhere/number" not in facts.numbers
    assert len(json.dumps(collected.state_dict())) < 100_000


class _Remembering(Rule):
    """Read a number and its earlier values."""

    name, topic = "remembering", Topic.DATA
    reads = remembers = ("attribution/strength", "attribution*_share/*")

    def check(self, facts: Facts) -> list[Finding]:
        return []


def test_an_interrupted_collection_goes_on() -> None:
    whole, resumed = Collected(RUN), Collected(RUN)
    for step in range(1, 80):
        for collected in (whole, resumed):
            collected.add_point(step, "train/loss", 1 / step)
            collected.freeze(step)
            collected.add_snapshot(step, _snapshot(step))
        if step == 40:
            state = json.loads(json.dumps(resumed.state_dict()))
            resumed = Collected(RUN)
            resumed.load_state_dict(state)
    assert json.dumps(whole.state_dict()) == json.dumps(resumed.state_dict())


def test_numbers_of_the_loop_are_those_before_the_snapshot() -> None:
    collected = Collected(RUN)
    collected.add_point(1, "train/loss", 1.0)
    collected.freeze(1)
    collected.add_point(2, "train/loss", math.nan)  # Before the analysis comes back.
    assert collected.add_snapshot(1, _snapshot(1)).curves["train/loss"].last == 1.0
    assert math.isnan(collected.facts().curves["train/loss"].last)


def test_groups_belong_to_callbacks_by_their_names() -> None:
    run = RunFacts(callbacks={"att": "attribution", "att_2": "attribution"})
    assert run.kind_of("att_2_loss") == ("attribution", "att_2")
    assert run.kind_of("att_loss") == ("attribution", "att")
    assert run.kind_of("other") == ("other", "other")
    numbers = {"att_2/incomplete": n(0.5), "att_loss/incomplete": n(0.6), "att/incomplete": n(0.7)}
    tags = [tag for tag, _ in Facts(run, 1, numbers).each("attribution", "incomplete")]
    assert tags == ["att/incomplete", "att_loss/incomplete", "att_2/incomplete"]


# --- the terminal


def test_the_terminal_gets_at_most_ten_lines() -> None:
    findings = [
        Finding("x", Topic.DATA, Severity.WARNING, f"{'word ' * 30}{i}.", "Do it.")
        for i in range(9)
    ]
    shown = lines(findings)
    assert len(shown) <= 10
    # One is for trust; each takes two lines and one for what to do; the last counts the others.
    assert shown[0] == "  trust: the maps were not checked"
    assert shown[-1].strip().startswith("and 7 more")
    assert all(len(line) <= 100 for line in shown)
    assert lines(findings[:1])[1].startswith("  warning: word")
    assert lines(findings[:1])[3] == "    → Do it."
    good = [
        Finding("rests_on", Topic.RELIANCE, Severity.INFO, "A 3 %.", "Do it."),
        Finding("a", Topic.TRUST, Severity.GOOD, "B.", "Do it.", label="complete"),
        Finding("b", Topic.TRUST, Severity.WARNING, "C.", "Do it.", label="noisy map"),
    ]
    assert lines(good[:2]) == [
        "  relies on: A 3 %.",
        "  trust: passed: complete",
        "  no fault found",
    ]
    assert lines(good)[1:] == [
        "  trust: doubtful, noisy map; passed: complete",
        "  warning: C.",
        "    → Do it.",
    ]
    assert lines([]) == []


def test_the_terminal_tells_how_far_the_training_is() -> None:
    loss = of(
        "learnt", dataclasses.replace(RUN, chance_loss=4.17),
        numbers={"held_out/loss": n(3.29, 2.14, 5.06)},
    )  # fmt: skip
    assert lines(loss) == [
        "  trust: the maps were not checked",
        "  learning: No learning is shown yet: the held-out loss is 3.29 [2.14, 5.06], and that of "
        "the best",
        "    constant 4.17.",
        "  no fault found",
    ]


def test_the_terminal_names_what_is_noted_and_keeps_units_with_numbers() -> None:
    findings = [
        Finding("a", Topic.TRUST, Severity.GOOD, "B.", "Do it.", label="complete"),
        Finding("c", Topic.TIME, Severity.INFO, "C.", "Do it.", label="extrapolation"),
        Finding("rests_on", Topic.RELIANCE, Severity.INFO, f"{'word ' * 16}abcd 4 % x.", "Do it."),
    ]
    first, second, *_, last = lines(findings)
    # Of 100 characters 13 + 80 + 4 are taken: "4" would fit, and its unit would not.
    assert first == f"  relies on: {'word ' * 16}abcd"
    assert second == "    4 % x."
    assert last == "  no fault found; noted: extrapolation"


def test_agreement_within_ten_points_is_none_where_shares_are_disputed() -> None:
    numbers = {
        "attribution/strength": n(1.0),
        "removal/strength": n(1.0),
        "attribution_share/heat": n(0.92, 0.88, 0.95),
        "attribution_share/load": n(0.08, 0.05, 0.12),
        "removal_share/heat": n(0.87, 0.80, 0.91),
        "removal_share/load": n(0.13, 0.09, 0.20),
        "attribution/disputed": n(0.0),
    }
    run = dataclasses.replace(RUN, callbacks={**RUN.callbacks, "removal": "removal"})
    assert severities("removal_disagrees", run, numbers=numbers) == ["good"]
    (found,) = of("removal_disagrees", run, numbers={**numbers, "attribution/disputed": n(1.0)})
    assert found.severity is Severity.INFO
    assert "on 1 share of features and elapsed time" in found.sentence


# --- runs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(3, 6, backbone_units=8, return_sequences=False), nn.Linear(6, 1)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta=time_delta)[0])


rng = np.random.default_rng(0)
HELD_OUT = ncp.HeldOutBatch(
    rng.normal(size=(16, 8, 3)).astype(np.float32),
    rng.uniform(0.5, 2, size=(16, 8)).astype(np.float32),
    feature_names=["vibration", "heat (°C)", "load"],
)


def trained(monitor: ncp.Monitor, model: Net, steps: range) -> None:
    with monitor:
        for step in steps:
            key = mx.random.key(step)
            model.head.weight = model.head.weight + 0.05 * mx.random.normal(
                model.head.weight.shape, key=key
            )
            monitor.on_step_end(step, loss=1 / step)
            monitor.log_scalars(step, {"val/loss": 2 / step})


@pytest.mark.parametrize("background", [False, True])
def test_the_log_holds_the_findings_and_can_be_judged_again(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mx.random.seed(3)
    monitor = ncp.Monitor(Net(), HELD_OUT, log_dir=tmp_path / "a", every=2, background=background)
    trained(monitor, Net(), range(1, 7))
    assert [f.rule for f in monitor.findings if f.rule == "rests_on"]
    assert all(f.step == 6 for f in monitor.findings)
    run = ncp.runs.read_run(tmp_path / "a")
    assert not run.warnings
    documents = run.texts["_ncp/findings"]
    assert list(documents) == [2, 4, 6]
    logged = [Finding.from_json(f) for f in json.loads(documents[6])]
    assert [f.sentence for f in logged] == [f.sentence for f in monitor.findings]
    assert [f.sentence for f in findings_of(run)] == [f.sentence for f in monitor.findings]
    assert "heat (°C)" in next(f.sentence for f in logged if f.rule == "rests_on")
    assert monitor.findings[0].sentence in run.texts["findings/summary"][6]


def test_findings_are_equal_in_the_background_and_in_the_loop() -> None:
    found = []
    for background in (False, True):
        mx.random.seed(3)
        writer, model = ncp.MemoryWriter(), Net()
        monitor = ncp.Monitor(model, HELD_OUT, writer=writer, every=2, background=background)
        trained(monitor, model, range(1, 9))
        found.append([(s, r.json) for s, r in writer.records if isinstance(r, ncp.Data)])
    assert found[0] == found[1]
    assert len(found[0]) > 4


def test_a_resumed_run_finds_what_an_uninterrupted_one_does() -> None:
    def run(parts: list[range]) -> list[Any]:
        mx.random.seed(3)
        writer, model, state = ncp.MemoryWriter(), Net(), None
        for steps in parts:
            monitor = ncp.Monitor(model, HELD_OUT, writer=writer, every=2, background=False)
            if state is not None:
                monitor.load_state_dict(state)
            trained(monitor, model, steps)
            state = json.loads(json.dumps(monitor.state_dict()))
        return [state["findings"], [f.to_json() for f in monitor.findings]]

    assert run([range(1, 13)]) == run([range(1, 7), range(7, 13)])


# --- planted truths, rule by rule


@pytest.mark.parametrize(
    ("loss", "low", "expected"),
    [
        (n(0.21, 0.18, 0.25), 0.88, "good"), (n(0.6, 0.5, 0.75), 0.7, "warning"),
        (n(0.9, 0.8, 1.1), 0.88, "problem"), (n(0.6, 0.5, 0.75), 0.88, "good"),
        (n(0.5, 0.3, 0.75), 0.7, "info"), (n(0.21, 0.18, 0.25), 0.7, "good"),
    ],
)  # fmt: skip
def test_learning_is_judged_against_a_constant(loss: Number, low: float, expected: str) -> None:
    run = RunFacts(
        chance_loss=0.6931, class_counts=(5, 15), class_names=("a", "b"),
        callbacks={"held_out": "held_out"},
    )  # fmt: skip
    numbers = {"held_out/loss": loss, "held_out/accuracy": n(0.93, low, 0.97)}
    (found,) = of("learnt", run, numbers=numbers)
    assert found.severity.value == expected
    assert "0.693" in found.sentence
    # 15 of 20 sequences.
    assert (
        f"accuracy is 93 % [{100 * low:.0f}, 97], and the most frequent class has 75 %"
        in found.sentence
    )
    assert of("learnt", numbers=numbers) == []  # The loss of a constant is not known.


FALLING = [1 / step for step in range(1, 41)]


def test_a_loss_that_does_not_fall() -> None:
    wave = [1 + 0.1 * (-1) ** step for step in range(40)]
    for losses, expected in [
        (wave, True),
        (FALLING, False),
        (wave[:6], False),
        ([0.0] * 40, False),
    ]:
        found = of("loss_not_falling", curves={"train/loss": curve(losses)})
        assert bool(found) == expected


def test_a_loss_that_jumps() -> None:
    # A minimum of 0.1, then 0.2 and 3.0 in turn: mean 1.6, SD 1.4.
    jumping = [1 / step for step in range(1, 11)] + [0.2, 3.0] * 15
    (found,) = of("loss_jumps", curves={"train/loss": curve(jumping)})
    assert "its mean is 1.6 and it reaches 3" in found.sentence
    noise = np.random.default_rng(0).uniform(0.8, 1.2, 200)
    for losses in (FALLING, noise, noise * np.linspace(1, 0.1, 200)):
        assert of("loss_jumps", curves={"train/loss": curve(losses)}) == []


def test_explosions() -> None:
    for tag, values, expected in [
        ("train/loss", [1, 5, 12], True), ("train/loss", [1, 9], False),
        ("train/grad_norm", [1, 120], True), ("train/grad_norm", [1, 50], False),
    ]:  # fmt: skip
        assert bool(of("exploding", curves={tag: curve(values)})) == expected
    past = (Past(10, {"transitions/magnitude_mean": n(0.01)}),)
    (found,) = of("exploding", numbers={"transitions/magnitude_mean": n(3.0)}, history=past)
    assert "300-fold" in found.sentence
    assert of("exploding", numbers={"transitions/magnitude_mean": n(0.5)}, history=past) == []


def test_a_model_that_is_not_updated() -> None:
    strength, moves = "attribution/strength", "transitions/magnitude_mean"
    past = (Past(50, {strength: n(0.5), moves: n(0.25)}),)
    same = {strength: n(0.5), moves: n(0.25)}
    (found,) = of("no_progress", numbers=same, history=past)
    assert "since step 50: 2 numbers" in found.sentence
    assert of("no_progress", numbers=same | {moves: n(0.2500001)}, history=past) == []
    # A number that was not measured again can't have changed.
    assert of("no_progress", numbers={strength: n(0.5, step=50)}, history=past) == []
    assert of("no_progress", numbers=same) == []


def _losses(values: list[float]) -> dict[str, Any]:
    """Return facts with a held-out loss every 10 steps, the last at step 100."""
    first = 100 - 10 * (len(values) - 1)
    past = tuple(Past(first + 10 * i, {"held_out/loss": n(v)}) for i, v in enumerate(values[:-1]))
    return {"numbers": {"held_out/loss": n(values[-1])}, "history": past}


def test_overfitting() -> None:
    run = RunFacts(callbacks={"held_out": "held_out"})
    training = {"train/loss": curve([1 / step for step in range(1, 101)])}
    rising, once, noisy = [1, 0.5, 0.6, 0.7], [1, 0.5, 0.5, 0.7], [1, 0.5, 0.53, 0.54]
    (found,) = of("overfits", run, curves=training, **_losses(rising))
    assert "lowest at step 80 with 0.5 and is 0.7 now" in found.sentence
    for values in (once, noisy, [1, 0.9, 0.8, 0.7]):
        assert of("overfits", run, curves=training, **_losses(values)) == []
    # Where the training loss rises, too, it is something else.
    unstable = {"train/loss": curve(range(1, 101))}
    assert of("overfits", run, curves=unstable, **_losses(rising)) == []
    (found,) = of("overtrained", run, **_losses([1, 0.5, 0.5, 0.499, 0.5, 0.5, 0.5]))
    assert "since step 50" in found.sentence
    assert of("overtrained", run, **_losses([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])) == []


def test_the_loops_own_validation_loss_comes_first() -> None:
    curves = {"train/loss": curve(FALLING), "val/loss": curve([1, 0.5, 0.4, 0.8, 0.9])}
    (found,) = of("overfits", curves=curves)
    assert "val/loss was lowest at step 3 with 0.4" in found.sentence


def test_dead_units_and_layers() -> None:
    arrays = {"_ncp/transitions_unit_speed_max": np.ones(8)}
    (found,) = of("dead_units", numbers={"transitions/dead_units": n(2)}, arrays=arrays)
    assert found.sentence.startswith("2 of 8 units")
    assert of("dead_units", numbers={"transitions/dead_units": n(1)}, arrays=arrays) == []
    assert of("dead_units", numbers={"transitions/dead_units": n(8)}) == []
    for share, expected in [(n(0.99, 0.97, 1.0), 1), (n(0.96, 0.9, 0.98), 0), (n(0.5), 0)]:
        found = of("dead_units", numbers={"backbone/layer1_sparsity": share})
        assert len(found) == expected


def test_a_poor_start_is_that_of_the_first_snapshot() -> None:
    past = (Past(10, {"transitions/saturation": n(0.8)}),)
    (found,) = of("poor_start", numbers={"transitions/saturation": n(0.1)}, history=past)
    assert "80 % of it at step 10" in found.sentence
    past = (Past(10, {"transitions/saturation": n(0.1)}),)
    assert of("poor_start", numbers={"transitions/saturation": n(0.8)}, history=past) == []


@pytest.mark.parametrize(
    ("lag", "steps", "expected"),
    [(n(0.05, 0.02, 0.08), 24, 1), (n(0.05, 0.02, 0.2), 24, 0), (n(0.05), 3, 0), (n(2), 24, 0)],
)
def test_the_last_step_only(lag: Number, steps: int, expected: int) -> None:
    run = RunFacts(time_steps=steps, callbacks={"attribution": "attribution"})
    assert len(of("last_step_only", run, numbers={"attribution/mean_lag": lag})) == expected


def test_memory() -> None:
    run = RunFacts(time_steps=24, duration=23.0, callbacks={"dynamics": "dynamics"})
    for rule, tag, values in [
        ("unstable_memory", "dynamics/stability_exponent", (n(0.2, 0.1, 0.3), n(0.2, -0.1, 0.5))),
        ("short_memory", "dynamics/linear_memory_steps", (n(1.1, 1.0, 1.3), n(1.1, 0.9, 3.0))),
    ]:
        found = [len(of(rule, run, numbers={tag: value})) for value in values]
        assert found == [1, 0], rule
    profile = np.full((24, 3), 1.0)
    for size, expected in [(1e-5, 1), (1e-2, 0)]:
        profile[:6] = size  # 6 of 24 time steps: 1e-5 * 6 / 18, or a third of a per cent.
        found = of(
            "forgets_the_beginning", numbers={"attribution/strength": n(1)},
            arrays={"_ncp/attribution_strength": profile},
        )  # fmt: skip
        assert len(found) == expected


@pytest.mark.parametrize(
    ("rule", "tag", "values", "expected"),
    [
        ("methods_disagree", "attribution/agreement", (0.2, 0.6, 0.9), ["warning", "", "good"]),
        ("noisy_map", "attribution/reliability", (0.3, 0.7, 0.95), ["warning", "", "good"]),
        (
            "faithful", "faithfulness/cpd_advantage", (-0.1, 0.0, 0.4),
            ["warning", "warning", "good"],
        ),
    ],
)  # fmt: skip
def test_checks_of_maps(rule: str, tag: str, values: Any, expected: list[str]) -> None:
    name = tag.partition("/")[0]
    run = RunFacts(callbacks={name: name})
    found = ["".join(severities(rule, run, numbers={tag: n(value)})) for value in values]
    assert found == expected


@pytest.mark.parametrize(
    ("exponent", "duration", "expected"),
    [
        (n(0.2, 0.1, 0.3), 11.0, 1),  # By a factor of at least exp(1.1).
        (n(0.2, 0.1, 0.3), 9.0, 0),  # exp(0.9) is below e, and might be next to nothing.
        (n(0.2, 0.1, 0.3), float("nan"), 0),
        (n(0.2), 6.0, 1),
        (n(-0.2, -0.3, -0.1), 100.0, 0),
    ],
)
def test_an_unstable_state_grows_within_a_sequence(
    exponent: Number, duration: float, expected: int
) -> None:
    run = RunFacts(time_steps=24, duration=duration, callbacks={"dynamics": "dynamics"})
    found = of("unstable_memory", run, numbers={"dynamics/stability_exponent": exponent})
    assert len(found) == expected
    if found and duration == 11.0:
        assert "by a factor of 9 along" in found[0].sentence  # exp(2.2) is 9.03.


def test_a_map_is_the_inputs_only_if_every_shuffle_says_so() -> None:
    run = RunFacts(callbacks={"sanity_check": "sanity_check"})
    tag = "sanity_check/rank_correlation"

    def found(value: Number, least: Number | None) -> list[str]:
        numbers = {tag: value} | ({} if least is None else {f"{tag}_min": least})
        return severities("same_map_when_randomised", run, numbers=numbers)

    assert found(n(0.9), n(0.8)) == ["warning"]
    assert found(n(0.9), n(0.6)) == []
    assert found(n(0.9, 0.8, 0.95), n(0.8, 0.6, 0.9)) == []
    assert found(n(0.9), None) == []  # One shuffle tells too little.
    assert found(n(0.9), n(0.8, step=90)) == []  # The shuffles were those of an earlier map.
    assert found(n(0.6), None) == []
    assert found(n(0.1), None) == ["good"]


def test_a_ci_decides_on_faithfulness() -> None:
    run = RunFacts(callbacks={"faithfulness": "faithfulness"})
    for ci, expected in [((0.1, 0.3), "good"), ((-0.1, 0.5), "warning")]:
        number = n(0.2, *ci)
        found = severities("faithful", run, numbers={"faithfulness/cpd_advantage": number})
        assert found == [expected]


def test_attribution_against_removal() -> None:
    run = RunFacts(
        feature_names=("a", "b"), callbacks={"attribution": "attribution", "removal": "removal"}
    )

    def found(removed: Number) -> list[str]:
        return severities("removal_disagrees", run, numbers={
            "attribution/strength": n(1), "removal/strength": n(1),
            "attribution_share/a": n(0.6, 0.5, 0.7), "attribution_share/b": n(0.4, 0.3, 0.5),
            "removal_share/a": removed, "removal_share/b": n(1 - removed.value),
        })  # fmt: skip

    assert found(n(0.1, 0.05, 0.2)) == ["warning"]
    assert found(n(0.35, 0.2, 0.55)) == []  # The CIs overlap.
    assert found(n(0.55, 0.5, 0.6)) == ["good"]


def test_stability_names_the_step() -> None:
    def facts(shares: list[float]) -> dict[str, Any]:
        both = [
            {"attribution/strength": n(1), "attribution_share/heat": n(s),
             "attribution_share/load": n(1 - s)}
            for s in shares
        ]  # fmt: skip
        first = 100 - 10 * (len(both) - 1)
        past = tuple(Past(first + 10 * i, numbers) for i, numbers in enumerate(both[:-1]))
        return {"numbers": both[-1], "history": past}

    (found,) = of("stable", **facts([0.1, 0.3, 0.52, 0.5, 0.48, 0.49]))
    assert "since step 70" in found.sentence
    (found,) = of("stable", **facts([0.1, 0.3, 0.4]))
    assert found.severity is Severity.INFO
    assert "was 30 % at step 90, and is 40 % now" in found.sentence
    assert of("stable", **facts([0.1, 0.1])) == []


def test_time_scales() -> None:
    run = RunFacts(callbacks={"time_delta": "time_delta"})
    (found,) = of("extrapolation", run, numbers={
        "time_delta/outside_x2": n(0.3), "time_delta/outside_x5": n(0.8)})  # fmt: skip
    assert "×5 (80 % outside) of" in found.sentence
    assert "×2" not in found.sentence
    for error, expected in [(0.05, "warning"), (0.01, "good")]:
        numbers = {"time_delta/solver_error_x5": n(error), "time_delta/sensitivity_x5": n(0.4)}
        assert severities("solver_error", run, numbers=numbers) == [expected]
    # A reaction to scaled time is no ignorance, whatever the attribution shows.
    run = RunFacts(callbacks={"time_delta": "time_delta", "attribution": "attribution"})
    numbers = {"attribution/time_share": n(0.0), "time_delta/sensitivity_x2": n(0.3)}
    assert of("time_use", run, numbers=numbers) == []
    assert (
        of("time_use", RunFacts(time_varies=False), numbers={"attribution/time_share": n(0)}) == []
    )


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("batch_coupled", {"coupled": True}, {"coupled": False}),
        ("mostly_padding", {"padding": 0.85}, {"padding": 0.75}),
        (
            "class_imbalance", {"class_counts": (30, 3), "class_names": ("a", "b")},
            {"class_counts": (30, 4), "class_names": ("a", "b")},
        ),
        (
            "class_imbalance", {"class_counts": (20, 0), "class_names": ("a", "b")},
            {"class_counts": (10, 0), "class_names": ("a", "b")},
        ),
        (
            "feature_scales", {"feature_names": ("a", "b"), "feature_sds": (1.0, 100.0)},
            {"feature_names": ("a", "b"), "feature_sds": (0.0, 100.0)},
        ),
    ],
)  # fmt: skip
def test_batches(rule: str, bad: dict[str, Any], good: dict[str, Any]) -> None:
    assert severities(rule, RunFacts(**bad)) == ["warning"]
    assert severities(rule, RunFacts(**good)) == []


# --- what is true of a run


def test_the_best_constant() -> None:
    mask = np.ones((4, 3), bool)
    targets = np.array([[1.0], [3.0], [5.0], [7.0]], np.float32)
    assert chance_outputs(targets, (4, 1), mask).ravel().tolist() == [4.0] * 4
    # Three of the four sequences are of class 1: (3 + 1) / (4 + 2), and so on.
    logits = chance_outputs(np.array([1, 1, 0, 1]), (4, 2), mask)
    assert np.exp(logits[0]) == pytest.approx([2 / 6, 4 / 6])
    # Of a padded time step nothing is counted.
    mask[0, 1:] = False
    steps = np.arange(12, dtype=np.float32).reshape(4, 3)
    constant = chance_outputs(steps, (4, 3, 1), mask)
    assert constant.shape == (4, 3, 1)
    assert constant[0, 0, 0] == pytest.approx((66 - 1 - 2) / 10)
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 1]])
    odds = chance_outputs(labels, (4, 2), mask)[0]
    assert odds == pytest.approx([np.log(4 / 2), np.log(3 / 3)], abs=1e-6)


def test_the_duration_is_the_elapsed_time_within_sequences() -> None:
    x = np.zeros((2, 3, 1), np.float32)
    mask = np.array([[True, True, True], [False, True, True]])
    delta = np.array([[9.0, 1.0, 2.0], [9.0, 9.0, 4.0]], np.float32)
    model = CfC(1, 2, backbone_units=4)
    for times, expected in [({}, (2 + 1) / 2), ({"time_delta": delta}, (1 + 2 + 4) / 2)]:
        facts = run_facts(ModelRunner(model, ncp.HeldOutBatch(x, mask=mask, **times)))
        assert facts.duration == pytest.approx(expected)
        again = RunFacts.from_json(json.loads(json.dumps(facts.to_json())))
        assert again.duration == pytest.approx(expected)
    unknown = RunFacts.from_json(json.loads(json.dumps(RunFacts().to_json(), allow_nan=False)))
    assert math.isnan(unknown.duration)


def test_the_chance_loss_is_the_variance_of_the_targets() -> None:
    y = rng.normal(size=(16, 1)).astype(np.float32)
    held_out = ncp.HeldOutBatch(HELD_OUT.inputs, HELD_OUT.time_delta, targets=y)
    facts = run_facts(ModelRunner(Net(), held_out))
    assert facts.chance_loss == pytest.approx(float(y.var()), rel=1e-5)
    assert (facts.takes_time, facts.time_varies, facts.class_counts) == (True, True, None)
    again = RunFacts.from_json(json.loads(json.dumps(facts.to_json(), allow_nan=False)))
    assert again == facts
    without = run_facts(ModelRunner(Net(), HELD_OUT))
    assert math.isnan(without.chance_loss)
    assert math.isnan(RunFacts.from_json(without.to_json()).chance_loss)
