"""The picture of the findings: its content is that of hand-made facts, and its texts have room."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_findings import HELD_OUT, RUN, Net, curve, n, trained
from test_plots import texts, words

import ncp_callbacks as ncp
from ncp_callbacks.findings import Facts, Finding, Past, RunFacts, Severity, Topic, judge
from ncp_callbacks.findings.overview import Light, Overview, overview
from ncp_callbacks.findings.plot import fitted, plot_overview
from ncp_callbacks.observer.background import BackgroundObserver
from ncp_callbacks.observer.delivery import Delivery
from ncp_callbacks.observer.observer import Analysis
from ncp_callbacks.plotting.png import to_png
from ncp_callbacks.plotting.style import LEFT, RIGHT
from ncp_callbacks.plotting.text import text_width, wrap
from ncp_callbacks.records import Figure, Picture
from ncp_callbacks.run_log import RunLog
from ncp_callbacks.screen import Screen


def summed_up(run: RunFacts = RUN, **facts: Any) -> Overview:
    found = Facts(run, 100, **facts)
    return overview(found, judge(found))


# --- content


def test_what_is_planted_is_shown() -> None:
    found = summed_up(
        numbers={
            "attribution/strength": n(1.0),
            "attribution_share/heat": n(0.3, 0.25, 0.35),
            "attribution_share/vibration": n(0.6, 0.5, 0.7),
            "attribution_share/load": n(0.1),
            "attribution/time_share": n(0.2, 0.1, 0.3),
            "transitions/saturation": n(0.97, 0.95, 0.99),
        },
        arrays={"_ncp/attribution_strength": np.repeat([[1.0], [3.0]], 3, axis=1)},
        curves={"train/loss": curve([0.9, 0.5])},
    )
    assert [name for name, _ in found.shares] == ["vibration", "heat", "load"]
    assert found.time_share is not None
    assert (found.time_share.value, found.time_share.low) == (0.2, 0.1)
    assert found.profile is not None
    assert found.profile.tolist() == [0.25, 0.75]
    assert found.metric == "train/loss 0.5"
    # One snapshot: the state is at its bounds now, and was so at the first one, which is this.
    assert found.verdict == "1 problem, 1 warning"
    lights = {light.name: light for light in found.lights}
    assert (lights["state"].severity, lights["state"].words) == (Severity.PROBLEM, "saturated")
    assert lights["trust"] == Light("trust", None, "not checked")
    assert lights["batch"].words == "no fault found"
    assert "97 % [95, 99] of the state" in found.texts[0][1]


def test_classes_are_judged_by_accuracy_and_old_numbers_name_their_step() -> None:
    run = RunFacts(class_names=("a", "b"), class_counts=(24, 8), chance_loss=0.56)
    numbers = {"held_out/accuracy": n(0.9, 0.8, 0.95), "held_out/loss": n(0.3)}
    found = summed_up(run, numbers=numbers)
    assert found.metric == "accuracy 90 % [80, 95], guessing 75 %"
    old = summed_up(RunFacts(chance_loss=0.56), numbers={"held_out/loss": n(0.3, step=40)})
    assert old.metric == "loss at step 40 0.3, constant 0.56"


def test_nothing_is_claimed_without_numbers() -> None:
    found = summed_up(RunFacts())
    assert found.verdict == "Nothing was checked"
    assert {light.words for light in found.lights} == {"not checked"}
    shown = words(plot_overview(found, step=5))
    for text in ("no loss was logged", "no attribution is known", "no time profile"):
        assert text in shown
    assert to_png(plot_overview(found, step=5)).startswith(b"\x89PNG")


def test_a_run_without_a_fault_shows_what_it_relies_on() -> None:
    found = summed_up(
        numbers={
            "attribution/strength": n(1.0),
            "attribution_share/heat": n(0.3),
            "attribution_share/load": n(0.7),
        }
    )
    assert found.verdict == "No fault found"
    shown = words(plot_overview(found, step=5))
    assert "load has 70 % and heat | 30 %" in shown
    assert "→" not in shown


# --- the picture

NAMES = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=80)


@st.composite
def overviews(draw: st.DrawFn) -> Overview:
    names = draw(st.lists(NAMES, max_size=12))
    shares = draw(st.lists(st.floats(0, 1), min_size=len(names), max_size=len(names)))
    sentences = st.lists(
        st.sampled_from(["word", "longer", "W" * 80, "0.34 [0.28, 0.41],"]), min_size=1, max_size=60
    )
    found = draw(st.lists(st.tuples(st.sampled_from(Severity), sentences, sentences), max_size=6))
    return Overview(
        "12 problems, 30 warnings",
        draw(st.sampled_from(["", "held-out loss 0.0017 [0.0011, 0.0026], constant 1.7e+03"])),
        tuple((name, n(v, v / 2, v)) for name, v in zip(names, shares, strict=True)),
        draw(st.sampled_from(["", " at step 1,000,000"])),
        draw(st.sampled_from([None, n(0.3, 0.1, 0.9), n(0.0)])),
        draw(st.sampled_from([None, np.ones(1), np.full(2, 0.5), np.full(4000, 1 / 4000)])),
        draw(st.booleans()),
        tuple(
            Light(name, draw(st.sampled_from([None, *Severity])), draw(st.sampled_from(LABELS)))
            for name in ("learning", "trust", "reliance", "state", "time", "batch")
        ),
        tuple((severity, " ".join(a), " ".join(b)) for severity, a, b in found),
    )  # fmt: skip


LABELS = ["no fault found", "below chance", "forgets the start", "removal disagrees", "W" * 40]


@settings(max_examples=12)
@given(overviews(), st.sampled_from([1, 10_000_000]))
def test_texts_are_on_the_page_and_apart(found: Overview, step: int) -> None:
    figure = plot_overview(found, step=step)
    FigureCanvasAgg(figure).draw()
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts(figure)]
    for text, box in boxes:
        assert box.x0 >= 0 and box.x1 <= 640 and box.y0 >= 0 and box.y1 <= 430, text  # noqa: PT018
    for i, (text, a) in enumerate(boxes):
        for other, b in boxes[:i]:
            across = min(a.x1, b.x1) - max(a.x0, b.x0)
            up = min(a.y1, b.y1) - max(a.y0, b.y0)
            # Descenders may reach into the row below.
            assert across <= 1 or up <= 6, (text, other)


def _all_that_is_wrong() -> Facts:
    """Return facts in which nearly everything is wrong, with numbers as long as they get."""
    kinds = (
        "attribution", "removal", "transitions", "held_out", "time_delta", "dynamics", "parameters",
        "faithfulness", "sanity_check", "gradient_reach", "backbone",
    )  # fmt: skip
    run = RunFacts(
        sequences=12, time_steps=240, duration=1e5, takes_time=True, chance_loss=0.000123,
        feature_names=("blood pressure", "respiratory rate"), feature_sds=(1e-5, 123.0),
        class_names=("survives", "dies in hospital", "dies at home"), class_counts=(11, 1, 6),
        padding=0.876, coupled=True, callbacks={kind: kind for kind in kinds},
    )  # fmt: skip
    odd = n(0.0123, 0.00999, 0.0145)
    wide, high = n(0.123, -0.456, 0.789), n(0.987, 0.956, 0.995)
    numbers = {
        "attribution/strength": n(12.3), "removal/strength": n(12.3, step=90),
        "attribution_share/blood pressure": high, "removal_share/respiratory rate": high,
        "attribution_share/respiratory rate": odd, "removal_share/blood pressure": odd,
        "attribution/time_share": high, "attribution/mean_lag": n(0.0123, 0.00999, 0.0145),
        "attribution/incomplete": high, "attribution/reliability": wide,
        "attribution/agreement": wide, "transitions/saturation": high,
        "transitions/dead_units": n(123), "held_out/loss": n(12.3, 10.1, 14.5, step=90),
        "held_out/accuracy": odd, "time_delta/solver_error_x0.25": n(0.123),
        "time_delta/sensitivity_x0.25": n(0.234), "dynamics/stability_exponent": odd,
        "dynamics/linear_memory_steps": n(1.23, 1.01, 1.34, step=90),
        "parameters/unchanged": n(12), "parameters/update": high, "parameters/update_encoder": n(0),
        "faithfulness/cpd_advantage": wide, "sanity_check/rank_correlation": high,
        "sanity_check/rank_correlation_min": high,
        "gradient_reach/first_step": n(1.23e-5, 1.01e-5, 1.34e-5, step=90),
        "backbone/cell.backbone.layers.0_sparsity": high,
    }  # fmt: skip
    shares = np.array([[0.0123, 0.00999, 0.0145, 0.987, 0.956, 0.995, 1]] * 2).T
    shares[[0, 1, 2, 3, 4, 5], 1] = [0.987, 0.956, 0.995, 0.0123, 0.00999, 0.0145]
    return Facts(
        run, 1_000_000, numbers,
        {
            "_ncp/removal_block_shares": shares,
            "_ncp/removal_blocks": np.array([[0, 120.0], [119, 239], [1, 1]]),
            "_ncp/transitions_unit_speed_max": np.full(128, 0.5),
            "_ncp/held_out_confusion": np.diag([999, 99, 99.0]) + 888 * np.eye(3, k=1)[::-1, ::-1],
            "_ncp/attribution_confused": np.array([1.0, 2, 888, 999]),
            "_ncp/attribution_confused_shares": np.tile(
                [[-1], [-1], [0.0123], [0.00999], [0.0145], [0.987], [0.956], [0.995], [1]], 2
            ),
        },
        tuple(
            Past(step, {**numbers, "held_out/loss": n(value)})
            for step, value in ((100_000, 11.1), (200_000, 0.00123), (300_000, 12.2))
        ),
        {"train/loss": curve(np.linspace(1.23e-4, 1.01e-5, 100))},
    )  # fmt: skip


def test_no_text_is_cut() -> None:
    """Each finding has room in the place of the first one, and so has its label."""
    facts = _all_that_is_wrong()
    findings = [finding for finding in judge(facts) if finding.severity.rank >= 2]
    assert len({finding.rule for finding in findings}) >= 20
    for finding in findings:
        found = fitted(finding.sentence, finding.action, RIGHT - LEFT - text_width("✔") - 6, 6)
        assert found is not None, finding
        assert found[1], finding
        assert "…" not in "".join(found[0] + found[1])
        one = overview(facts, [finding])
        assert "…" not in words(plot_overview(one, step=facts.step)), finding.rule


def test_an_action_ends_after_a_clause_that_fits() -> None:
    sentence, clause = "It is " + "so " * 30 + "long.", "Do this " + "and that " * 12
    found = dataclasses.replace(
        summed_up(), texts=((Severity.WARNING, sentence, f"{clause}now; then {clause}at last."),)
    )
    shown = words(plot_overview(found, step=5)).replace(" | ", " ")
    assert f"→ {clause}now." in shown
    assert "then" not in shown


@given(st.lists(st.text("abWi.,", min_size=1, max_size=12), max_size=40), st.integers(1, 9))
def test_wrapping_keeps_words_until_there_is_no_room(parts: list[str], most: int) -> None:
    text = " ".join(parts)
    found = wrap(text, 300, most)
    assert len(found) <= most
    assert all(text_width(line) <= 300 for line in found)
    whole = wrap(text, 300, 1000)
    assert " ".join(whole) == text
    # No word of the next line would have fitted.
    for line, after in itertools.pairwise(whole):
        assert text_width(f"{line} {after.split()[0]}") > 300
    assert (found == whole) == (len(whole) <= most)
    if len(whole) > most:
        assert found[-1].endswith("…")


# --- runs


def test_each_snapshot_has_its_picture_first_on_the_screen(tmp_path: Path) -> None:
    pngs = []
    for background in (False, True):
        mx.random.seed(3)
        where, model = tmp_path / str(background), Net()
        monitor = ncp.Monitor(model, HELD_OUT, log_dir=where, every=2, background=background)
        trained(monitor, model, range(1, 7))
        run = ncp.runs.read_run(where)
        assert not run.warnings
        images = run.images["findings/overview"]
        assert list(images) == [2, 4, 6]
        pngs.append([image.data() for image in images.values()])
        # The texts of findings and the lights of the picture tell of the same.
        assert monitor.findings[0].sentence in run.texts["findings/summary"][6]
    assert pngs[0] == pngs[1]
    screen = Screen(["attribution", "findings"])
    shown = screen.picture("findings/overview", "headline")
    assert shown == "headline/_findings/overview"
    assert shown < screen.tag("attribution/entropy", "headline")
    assert screen.picture("attribution/heatmap") == "xai_attribution/heatmap"


def test_pictures_go_to_the_writer_where_the_process_has_ended() -> None:
    log, writer = RunLog(), ncp.MemoryWriter()
    log.open([writer], {})
    delivery = Delivery(log, set(), raise_errors=False, verbose=False)
    ended = BackgroundObserver(delivery)
    ended.lost = True
    figure = Figure("findings/overview", plot_overview, summed_up(), place="headline")
    log.write_analysis = lambda *_: [figure]  # type: ignore[method-assign]
    delivery.draw = ended.draw
    delivery.analysis(Analysis(7, 1.0))
    assert [(s, r) for s, r in writer.records if isinstance(r, Figure)] == [(7, figure)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_training_that_diverges_has_a_picture(bad: float) -> None:
    mx.random.seed(3)
    writer, model = ncp.MemoryWriter(), Net()
    with ncp.Monitor(model, HELD_OUT, writer=writer, every=1, background=True) as monitor:
        for step in (1, 2, 3):
            monitor.on_step_end(step, loss=1.0)
            model.head.weight = model.head.weight * bad
    pictures = {s for s, r in writer.records if isinstance(r, Picture) and "overview" in r.tag}
    assert pictures == {1, 2, 3}
    assert monitor.findings[0].severity is Severity.PROBLEM


def test_findings_without_a_label_are_read_from_older_logs() -> None:
    finding = Finding("x", Topic.DATA, Severity.GOOD, "A.", "B.", {}, 3, "few words")
    content = finding.to_json()
    assert Finding.from_json(content) == finding
    del content["label"]
    assert Finding.from_json(content).label == ""
