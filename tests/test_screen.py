"""The first screen of TensorBoard: which cards there are, in which groups, under which tags."""

from __future__ import annotations

import functools
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cis import everything, looked

import ncp_callbacks as ncp
from ncp_callbacks.models import CfC
from ncp_callbacks.records import Figure, Histogram, Scalar
from ncp_callbacks.runs import read_run
from ncp_callbacks.screen import Screen, plain_tag
from ncp_callbacks.writers import MemoryWriter, TensorBoardWriter
from ncp_callbacks.writers.encoding import Encoder
from ncp_callbacks.writers.run_config import RunConfig

# TensorBoard sorts digits, underscores and slashes before letters; without them, as Python does.
ORDER = ("headline", "train", "val", "xai_")


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(9, 8, backbone_units=6, backbone_layers=2), nn.Linear(8, 3)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0][:, -1])


def held_out() -> ncp.HeldOutBatch:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 6, 9)).astype(np.float32)
    names = [f"mean arterial pressure of the lead {i}" for i in range(9)]
    return ncp.HeldOutBatch(
        x,
        time_delta=rng.uniform(0.5, 2.0, (20, 6)).astype(np.float32),
        targets=rng.integers(0, 3, 20).astype(np.int32),
        feature_names=names,
    )


@functools.cache
def standard() -> tuple[Path, EventAccumulator]:
    """A log of the standard set, with nine features and the loop's own numbers."""
    where = Path(tempfile.mkdtemp())
    mx.random.seed(0)
    model = Classifier()
    with ncp.Monitor(model, held_out(), log_dir=where / "run", every=1) as monitor:
        for step in range(1, 5):
            model.update(nn.utils.tree_map(lambda p: 1.3 * p, model.trainable_parameters()))
            monitor.on_step_end(step, loss=1 / step)
            monitor.log_scalars(step, {"val/loss": 2 / step, "val/accuracy": 0.1 * step})
    return where / "run", loaded(where / "run")


@functools.cache
def all_callbacks(kind: str) -> EventAccumulator:
    where = Path(tempfile.mkdtemp())
    looked(kind, everything(), writer=TensorBoardWriter(where), by=0.5)
    return loaded(where)


def loaded(where: Path) -> EventAccumulator:
    return EventAccumulator(str(where), size_guidance={"scalars": 0, "tensors": 1}).Reload()


def cards(log: EventAccumulator) -> list[str]:
    """Tags of scalars, pictures and histograms, in both of their forms."""
    tags = log.Tags()
    tensors = [
        tag
        for tag in tags["tensors"]
        if log.SummaryMetadata(tag).plugin_data.plugin_name in ("images", "histograms")
    ]
    return [*tags["scalars"], *tensors]


LOGS = [
    lambda: standard()[1],
    *(functools.partial(all_callbacks, k) for k in ("cfc", "ltc", "cfc every")),
]
EVERY_LOG = pytest.mark.parametrize("log", LOGS, ids=["standard", "cfc", "ltc", "every"])


@EVERY_LOG
def test_tags_are_short_enough_for_a_card(log: functools.partial[EventAccumulator]) -> None:
    assert [tag for tag in cards(log()) if len(tag) > 35] == []


@EVERY_LOG
def test_a_group_is_one_page_and_comes_where_it_belongs(
    log: functools.partial[EventAccumulator],
) -> None:
    groups: dict[str, list[str]] = defaultdict(list)
    for tag in cards(log()):
        groups[tag.split("/")[0]].append(tag)
    assert {name: tags for name, tags in groups.items() if len(tags) > 12} == {}
    assert all(name.startswith(ORDER) for name in groups)
    assert min(groups) == "headline"
    assert "headline" < "train" < "val" < min(name for name in groups if name.startswith("xai_"))


# They change in longer trainings, and where arrays that are 0 move, too.
BY_CHANCE = {
    "headline/transitions/saturation", "xai_dynamics/beyond_chance",
    "xai_dynamics/linear_memory_steps", "xai_dynamics/target_memory_steps",
    "xai_attribution/disagreement", "xai_monitor/dropped_figures",
    "xai_parameters/unchanged",
}  # fmt: skip


@EVERY_LOG
def test_no_card_is_of_a_number_that_stays(log: functools.partial[EventAccumulator]) -> None:
    found = log()
    curves = {tag: {e.value for e in found.Scalars(tag)} for tag in found.Tags()["scalars"]}
    stays = {tag for tag, values in curves.items() if len(values) < 2}
    assert stays <= BY_CHANCE


def test_the_standard_set_has_at_most_45_cards_of_numbers() -> None:
    tags = standard()[1].Tags()["scalars"]
    assert len(tags) <= 45
    assert not any(re.search(r"(^|/)(ci|low|high)(/|$)", tag) for tag in tags)
    assert {tag for tag in tags if tag.startswith("headline/")} == {
        "headline/held_out/loss", "headline/held_out/accuracy", "headline/attribution/time_share",
        "headline/attribution/reliability", "headline/time_delta/sensitivity_x2",
        "headline/transitions/saturation",
    }  # fmt: skip


def test_the_log_is_read_back_under_the_tags_of_the_records() -> None:
    where, _ = standard()
    memory = MemoryWriter()
    mx.random.seed(0)
    model = Classifier()
    with ncp.Monitor(model, held_out(), writer=memory, every=1, background=False) as monitor:
        monitor.on_step_end(1, loss=1.0)
    run = read_run(where)
    records = [record for step, record in memory.records if step]
    scalars = {re.sub(r"[^-/\w.]", "_", r.tag) for r in records if isinstance(r, Scalar)}
    assert scalars <= set(run.scalars)
    assert {r.tag for r in records if isinstance(r, Figure)} == set(run.images)
    assert {r.tag for r in records if isinstance(r, Histogram)} == set(run.histograms)
    assert not any(tag.startswith(("headline/", "xai_")) for tag in (*run.scalars, *run.images))


# --- the rule


def test_only_tags_of_callbacks_are_moved() -> None:
    screen = Screen(["attribution", "fill"])
    assert screen.tag("attribution/heatmap") == "xai_attribution/heatmap"
    assert screen.tag("attribution_share/pulse") == "xai_attribution_share/pulse"
    assert screen.tag("fill/last") == "xai_fill/last"
    assert screen.tag("attributions/mine") == "attributions/mine"
    assert screen.tag("eval/loss") == "eval/loss"
    assert screen.tag("fill/last", "headline") == "headline/fill/last"
    assert Screen().tag("attribution/heatmap") == "attribution/heatmap"


@pytest.mark.parametrize(
    ("tag", "is_metric"),
    [("val/loss", True), ("val_loss", True), ("test", True), ("value/loss", False)],
)
def test_a_number_of_validation_is_a_metric_of_the_hyper_parameters(
    tag: str, is_metric: bool
) -> None:
    encoder = Encoder()
    encoder.values(RunConfig.of({"lr": 0.1}))
    encoder.values(Scalar("attribution/time_share", 0.5, place="headline"))
    encoder.values(Scalar(tag, 1.0))
    assert encoder.knows_metrics == is_metric
    assert (tag in str(encoder.metrics())) == is_metric


def test_a_number_of_failures_has_a_card_once_there_was_one() -> None:
    screen = Screen(["a"])
    shown = [screen.scalar("a/failed", "nonzero", value) for value in (0, 0, 3, 0, float("nan"))]
    assert shown == [None, None, "xai_a/failed", "xai_a/failed", "xai_a/failed"]
    assert screen.scalar("a/other", "data", 1.0) is None


def test_a_group_takes_no_11th_card() -> None:
    screen = Screen(["a"])
    shown = [screen.scalar(f"a/{i}", "group", 1.0) for i in range(20)]
    assert shown == [*(f"xai_a/{i}" for i in range(10)), *[None] * 10]
    assert screen.scalar("a/3", "group", 1.0) == "xai_a/3"
    # The loop's own are the user's.
    assert all(screen.scalar(f"mine/{i}", "group", 1.0) for i in range(20))


def test_long_tags_are_cut_in_the_middle_and_stay_apart() -> None:
    screen = Screen(["attribution"])
    names = [f"attribution_share/mean arterial pressure of the lead {i}" for i in range(30)]
    shown = [screen.tag(name) for name in names]
    assert len(set(shown)) == 30
    assert max(map(len, shown)) == 35
    assert all(tag.startswith("xai_attribution_share/mean") for tag in shown)
    assert shown[7].endswith("lead 7")
    alike = [f"attribution_share/pressure {i} of the very same lead" for i in range(30)]
    shown = [screen.tag(name) for name in alike]
    assert len(set(shown)) == 30
    assert max(map(len, shown)) == 35
    assert [screen.tag(name) for name in alike] == shown


def test_a_tag_of_the_users_own_is_read_as_it_is() -> None:
    assert plain_tag("headline/my/number", "") == "headline/my/number"
    assert plain_tag("xai_a/b", "a/b") == "a/b"
    assert plain_tag("loss", "my loss") == "loss"
