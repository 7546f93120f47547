"""Pictures and numbers of single sequences whose gradients are known in closed form."""

from __future__ import annotations

import io
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from PIL import Image
from promises import pattern, promised
from scipy.special import logit, softmax
from sklearn.decomposition import PCA
from test_interactions import check_picture
from test_interactions import logged as run
from test_oracles import B, Closed, F, T, TimeDeltaBank, at_step, close, data, parameters
from test_output_time import MASK, EveryGRU, Net, Tokens

import ncp_callbacks as ncp
from ncp_callbacks.callbacks.single_predictions.plot import Prediction
from ncp_callbacks.plots import plot_prediction, to_png

SCALES = (0.5, 1.0, 3.0)


def look(
    model: nn.Module, held_out: ncp.HeldOutBatch, sequences: Any = (0, 2), **more: Any
) -> tuple[dict[str, Any], tuple[str, ...]]:
    callback = ncp.SinglePredictions(sequences=sequences, scales=SCALES)
    return run(callback, model, held_out, **more)


def test_a_picture_of_leaky_integrators() -> None:
    p, (x, dt) = parameters(), data()
    records, notes = look(TimeDeltaBank(p), ncp.HeldOutBatch(x, dt), sequences=[3, 1], target=1)
    assert not notes
    known, weight = Closed(p, x, dt), at_step(-1, 1)
    owed = known.x * known.input_gradient(weight)
    spectrum = PCA(3).fit(known.states.reshape(B * T, -1))
    for sample in (3, 1):
        tag = f"predictions_output1/sequence_{sample}"
        picture = records[f"{tag}/overview"].data
        value = known.outputs[sample, -1, 1]
        assert picture.sequence == sample
        assert picture.value == pytest.approx(value, rel=1e-5)
        assert records[f"{tag}/target"].value == picture.value
        close(picture.attribution, owed[sample])
        close(records[f"_ncp/predictions_output1_sequence_{sample}"].values, owed[sample])
        strength = np.abs(owed[sample]).sum(axis=0)
        assert records[f"{tag}/top_share"].value == pytest.approx(
            strength.max() / strength.sum(), rel=1e-5
        )
        slope = (known.dt * known.time_gradient(weight))[sample].sum()
        assert records[f"{tag}/elasticity"].value == pytest.approx(slope, rel=1e-4)
        np.testing.assert_array_equal(picture.scales, SCALES)
        moved = [Closed(p, x, dt, s).outputs[sample, -1, 1] - value for s in SCALES]
        close(picture.changes, moved)
        assert picture.changes[1] == 0.0
        scores = spectrum.transform(known.states[sample])
        # Signs of axes are a matter of taste.
        close(np.abs(picture.states), np.abs(scores), 1e-4)
        np.testing.assert_array_equal(picture.time_steps, np.arange(T))
        assert picture.feature_names == ("feature 0", "feature 1", "feature 2")


def test_only_real_steps_are_shown() -> None:
    p, (x, dt) = parameters(), data()
    x = np.where(MASK[..., None], x, np.nan).astype(np.float32)
    records, _ = look(TimeDeltaBank(p), ncp.HeldOutBatch(x, dt, mask=MASK), sequences=(0, 1))
    for sample, steps in ((0, [1, 2, 3, 4, 5]), (1, [0, 1, 2])):
        picture = records[f"predictions/sequence_{sample}/overview"].data
        assert picture.time_steps.tolist() == steps
        assert picture.attribution.shape == (len(steps), F)
        assert picture.states.shape == (len(steps), 3)
        assert np.isfinite(picture.attribution).all()
        whole = records[f"_ncp/predictions_sequence_{sample}"].values
        assert whole.shape == (T, F)
        assert not whole[~MASK[sample]].any()
        # The target is the output at the last real step.
        known = Closed(p, np.nan_to_num(x[sample : sample + 1, : steps[-1] + 1]),
                       dt[sample : sample + 1, : steps[-1] + 1])  # fmt: skip
        if sample == 1:
            values = known.outputs[0, -1]
            odds = logit(softmax(values.astype(np.float64))).max()
            assert picture.value == pytest.approx(odds, rel=1e-5)


def test_every_sequence_can_be_one_of_them_and_no_other() -> None:
    mx.random.seed(0)
    held_out = ncp.HeldOutBatch(*data())
    # The dry run sees two sequences only; what it can't see it must not refuse.
    records, notes = look(Net(), held_out, sequences=[B - 1])
    assert not notes
    assert f"predictions/sequence_{B - 1}/overview" in records
    with (
        pytest.raises(RuntimeError, match=rf"sequences=\[{B}\]: the held-out batch has {B}"),
        ncp.Monitor(
            Net(), held_out, [ncp.SinglePredictions(sequences=[B])], writer=ncp.MemoryWriter()
        ),
    ):
        pass


def test_the_guide_names_the_tags_of_the_sequences_chosen() -> None:
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(*data())
    callback = ncp.SinglePredictions(sequences=[3])
    with ncp.Monitor(Net(), held_out, [callback], writer=writer, every=1):
        pass
    guide = next(r.markdown for _, r in writer.records if r.tag == "monitor/guide")
    assert "`predictions/sequence_3/target`" in guide
    assert "sample_0" not in guide


def test_a_chosen_sequence_is_itself_whatever_others_analyse() -> None:
    mx.random.seed(0)
    model, held_out = Net(), ncp.HeldOutBatch(*data())
    alone, _ = look(model, held_out, sequences=[3])
    writer = ncp.MemoryWriter()
    callbacks = [
        ncp.StateSpace(max_sequences=2),
        ncp.SinglePredictions(sequences=[3], scales=SCALES),
    ]
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
    (_, value), *_ = writer.scalars("predictions/sequence_3/target")
    assert value == pytest.approx(alone["predictions/sequence_3/target"].value, rel=1e-5)


def test_costs_nothing_but_the_scales_of_these_sequences() -> None:
    mx.random.seed(0)
    model, held_out = Net(), ncp.HeldOutBatch(*data())
    sizes: list[int] = []
    call = Net.__call__
    writer = ncp.MemoryWriter()
    callbacks = [
        ncp.GradientAttribution(method="gradient"),
        ncp.SinglePredictions(sequences=[0, 2], scales=SCALES),
    ]
    with (
        mock.patch.object(
            Net, "__call__", lambda self, x, **k: (sizes.append(len(x)), call(self, x, **k))[1]
        ),
        ncp.Monitor(model, held_out, callbacks, writer=writer, every=1) as monitor,
    ):
        sizes.clear()
        monitor.on_step_end(1)
    assert sizes == [B, 2 * len(SCALES)]


@pytest.mark.parametrize("target", ["prediction", "loss", 1])
def test_the_docstring_lists_every_tag_and_no_other(target: Any) -> None:
    mx.random.seed(0)
    held_out = ncp.HeldOutBatch(*data(), targets=np.arange(B) % 2)
    records, _ = look(Net(), held_out, target=target)
    kinds = {ncp.Scalar: "scalar", ncp.Figure: "image", ncp.Array: "array"}
    promises = promised(ncp.SinglePredictions)
    slug = {"prediction": "", "loss": "_loss", 1: "_output1"}[target]
    seen = set()
    for tag, record in records.items():
        plain = tag.replace(f"predictions{slug}", "predictions", 1)
        fitting = [p for p in promises if pattern(p).match(plain)]
        assert fitting, tag
        assert promises[fitting[0]] == kinds[type(record)]
        seen.add(fitting[0])
    assert seen == set(promises)


def test_what_a_model_does_not_have_is_reported_once_and_skipped() -> None:
    x, _ = data()
    mx.random.seed(0)
    records, notes = look(EveryGRU(), ncp.HeldOutBatch(x))
    assert [("reaction to time" in note) for note in notes] == [True]
    picture = records["predictions/sequence_0/overview"].data
    assert picture.scales is picture.changes is None
    assert picture.states.shape == (T, 3)
    assert "predictions/sequence_0/elasticity" not in records
    records, notes = look(nn.Linear(F, 2), ncp.HeldOutBatch(x))
    assert sum("show no states, because no recurrent cell" in note for note in notes) == 1
    assert records["predictions/sequence_0/overview"].data.states is None


def test_tokens() -> None:
    mx.random.seed(0)
    held_out = ncp.HeldOutBatch(np.random.default_rng(0).integers(0, 7, (B, T)), data()[1])
    records, notes = look(Tokens(), held_out)
    assert not notes
    picture = records["predictions/sequence_2/overview"].data
    assert picture.attribution.shape == (T, 1)
    assert picture.feature_names == ("token",)
    assert records["predictions/sequence_2/top_share"].value == pytest.approx(1.0)


def test_a_sequence_that_is_not_finite_is_skipped() -> None:
    x, dt = data()
    x[2, 3, 1] = np.inf
    mx.random.seed(0)
    records, notes = look(Net(), ncp.HeldOutBatch(x, dt))
    assert records["predictions/nonfinite"].value == 1
    assert any("NaN or infinity" in note for note in notes)
    assert "predictions/sequence_0/overview" in records
    assert not any("sample_2" in tag for tag in records)


def test_classes_have_their_names() -> None:
    mx.random.seed(0)
    held_out = ncp.HeldOutBatch(*data(), targets=np.arange(B) % 2, class_names=["stable", "worse"])
    records, _ = look(Net(), held_out, sequences=[1, 2])
    assert records["predictions/sequence_1/overview"].data.label == "worse"
    assert records["predictions/sequence_2/overview"].data.label == "stable"
    held_out = ncp.HeldOutBatch(*data(), targets=np.arange(B) % 2)
    records, _ = look(Net(), held_out, sequences=[1])
    assert records["predictions/sequence_1/overview"].data.label == "class 1"


def test_axes_are_shared_stay_and_survive_an_interruption() -> None:
    mx.random.seed(0)
    model, held_out = Net(), ncp.HeldOutBatch(*data())
    first = ncp.SinglePredictions(sequences=[0, 2])
    before, _ = run(first, model, held_out, steps=1)
    second = ncp.SinglePredictions(sequences=[0, 2])
    second.load_state_dict(first.state_dict())
    model.head.weight = model.head.weight / 100
    after, _ = run(second, model, held_out, steps=1)
    options = [
        r[f"predictions/sequence_{s}/overview"].options for r in (before, after) for s in (0, 2)
    ]
    assert all({**o, "step": 0} == {**options[0], "step": 0} for o in options)
    # The states are the same, and so are the axes that they are shown along.
    states = [r["predictions/sequence_0/overview"].data.states for r in (before, after)]
    np.testing.assert_allclose(states[0], states[1], atol=1e-6)


@pytest.mark.parametrize(
    ("sequences", "error"),
    [([], ValueError), ([0, 0], ValueError), ([-1], ValueError), (range(5), ValueError),
     ([1.5], TypeError), (3, TypeError)],
)  # fmt: skip
def test_sequences_that_can_not_be_meant(sequences: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="sequences="):
        ncp.SinglePredictions(sequences=sequences)


# --- pictures -------------------------------------------------------------------------------------


def example(
    steps: int = 32,
    features: int = 4,
    states: int = 3,
    scales: int = 9,
    first: int = 0,
    span: tuple[float, float] = (0.25, 4.0),
    **more: Any,
) -> Prediction:
    rng = np.random.default_rng(steps + features)
    return Prediction(
        sequence=5, value=-1.2345, target="prediction at last step",
        time_steps=np.arange(first, first + steps),
        attribution=rng.normal(size=(steps, features)) ** 3,
        feature_names=tuple(f"heart rate {i}" for i in range(features)),
        states=rng.normal(size=(steps, states)).cumsum(axis=0) if states else None,
        scales=np.geomspace(*span, scales) if scales else None,
        changes=rng.normal(size=scales).cumsum() if scales else None, **more,
    )  # fmt: skip


PICTURES: list[tuple[Prediction, dict[str, Any]]] = [
    (example(label="stable"), {}),
    (example(8, 40), {"limit": 2.0}),
    (example(1000, 6, first=17), {"state_limit": 200.0}),
    (example(1, 1, states=1), {}),
    (example(states=0), {}),
    (example(scales=0), {"change_limit": 3.0}),
    (example(12, 300, states=0, scales=0), {}),
    (example(steps=9, scales=1), {}),
    (example(scales=5, span=(1.0, 1.3)), {}),
    (example(scales=5, span=(0.001, 5000.0)), {}),
]


@pytest.mark.parametrize("number", range(len(PICTURES)))
def test_pictures_fit_and_are_the_same_when_drawn_again(number: int) -> None:
    check_picture(plot_prediction, *PICTURES[number])


def test_a_picture_shows_the_sequence() -> None:
    prediction = example(first=3)
    figure = plot_prediction(prediction, limit=9.0, state_limit=20.0, change_limit=8.0, step=7)
    upper, lower, curve, _ = figure.axes
    np.testing.assert_allclose(upper.images[0].get_array(), prediction.attribution.T)
    assert upper.get_xlim() == lower.get_xlim() == (2.5, 34.5)
    lines = [line for line in lower.lines if line.get_zorder() >= 12]
    assert len(lines) == 3
    for line in lines:
        np.testing.assert_array_equal(line.get_xdata(), prediction.time_steps)
        assert any(np.array_equal(line.get_ydata(), s) for s in prediction.states.T)
    (line,) = (line for line in curve.lines if line.get_zorder() >= 12)
    np.testing.assert_array_equal(line.get_ydata(), prediction.changes)
    assert curve.get_xscale() == "log"
    assert (lower.get_ylim(), curve.get_ylim()) == ((-20.0, 20.0), (-8.0, 8.0))
    assert Image.open(io.BytesIO(to_png(figure))).size == (640, 430)


def test_a_gap_between_real_steps_is_a_gap() -> None:
    full = example(10)
    keep = np.array([0, 1, 2, 6, 7, 8, 9])
    partial = Prediction(
        sequence=0, value=0.0, target="", time_steps=keep, attribution=full.attribution[keep],
        feature_names=full.feature_names, states=full.states[keep],
    )  # fmt: skip
    upper, lower, _ = plot_prediction(partial).axes
    shown = upper.images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown).all(axis=0), ~np.isin(range(10), keep))
    for line in (line for line in lower.lines if line.get_zorder() >= 12):
        np.testing.assert_array_equal(np.isnan(line.get_ydata()), ~np.isin(range(10), keep))
