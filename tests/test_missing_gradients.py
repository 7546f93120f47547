"""Where targets have no gradient by the inputs, attribution by gradients alone is skipped."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from small_nets import TanhCell

import ncp_callbacks as ncp
from ncp_callbacks.callbacks import callback_set
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.passes import observe

B, T, H, KINDS = 6, 5, 4, 3


class Base(nn.Module):
    """Two measurements, and a kind, in the last column, that is used as an index."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.cell, self.head = nn.Embedding(KINDS, 2), TanhCell(4, H), nn.Linear(H, 1)

    def code(self, kind: mx.array) -> mx.array:
        raise NotImplementedError

    def steps(self, x: mx.array, kind: mx.array, scale: Any = 1.0) -> mx.array:
        joined = mx.concatenate([x, self.code(kind) * scale], axis=-1)
        h, ys = mx.zeros((len(x), H)), []
        for t in range(x.shape[1]):
            h = self.cell(joined[:, t], h)
            ys.append(self.head(h))
        return mx.stack(ys, axis=1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.steps(x[..., :2], x[..., 2].astype(mx.int32))


class ByModule(Base):
    def code(self, kind: mx.array) -> mx.array:
        return self.codes(kind)


class ByTable(Base):
    def code(self, kind: mx.array) -> mx.array:
        return self.codes["weight"][kind]


class ByTake(Base):
    def code(self, kind: mx.array) -> mx.array:
        return mx.take(self.codes["weight"], kind, axis=0)


class ByOneHot(Base):
    def code(self, kind: mx.array) -> mx.array:
        return mx.eye(KINDS)[kind] @ self.codes["weight"]


class ByModulePerStep(ByModule):
    def __call__(self, x: mx.array) -> mx.array:
        h, ys = mx.zeros((len(x), H)), []
        for t in range(x.shape[1]):
            code = self.codes(mx.round(x[:, t, 2]).astype(mx.uint32))
            h = self.cell(mx.concatenate([x[:, t, :2], code], axis=-1), h)
            ys.append(self.head(h))
        return mx.stack(ys, axis=1)


class Compiled(ByModule):
    def __init__(self) -> None:
        super().__init__()
        self._run = mx.compile(lambda x: ByModule.__call__(self, x), inputs=self.state)

    def __call__(self, x: mx.array) -> mx.array:
        return self._run(x)


class Stopped(ByTable):
    """What the message advises."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.steps(x[..., :2], mx.stop_gradient(x[..., 2].astype(mx.int32)))


class Beside(ByTable):
    """What the message advises, too."""

    def __call__(self, x: mx.array, kind: mx.array) -> mx.array:
        return self.steps(x, kind)


class Inverting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = TanhCell(3, H), nn.Linear(H, 1)

    def __call__(self, x: mx.array) -> mx.array:
        h, ys = mx.zeros((len(x), H)), []
        for t in range(x.shape[1]):
            gram = x[:, t, :, None] * x[:, t, None, :] + 2 * mx.eye(3)
            whitened = mx.linalg.inv(gram, stream=mx.cpu) @ x[:, t, :, None]
            h = self.cell(whitened[..., 0], h)
            ys.append(self.head(h))
        return mx.stack(ys, axis=1)


class InvertingCell(Inverting):
    """The operation is inside the recurrence, so that states have no Jacobian."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = InvertedCell()


class InvertedCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3 + H, H)

    def __call__(self, x: mx.array, h: mx.array) -> mx.array:
        gram = h[:, :, None] * h[:, None, :] + mx.eye(H)
        h = (mx.linalg.inv(gram, stream=mx.cpu) @ h[..., None])[..., 0]
        return mx.tanh(self.mix(mx.concatenate([x, h], axis=-1)))


class Choosing(nn.Module):
    """Reads out the largest units of its state, from tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.cell, self.head = nn.Embedding(KINDS, 2), TanhCell(2, H), nn.Linear(2, 1)

    def __call__(self, tokens: mx.array) -> mx.array:
        h, ys = mx.zeros((len(tokens), H)), []
        for t in range(tokens.shape[1]):
            h = self.cell(self.codes(tokens[:, t]), h)
            ys.append(self.head(mx.take_along_axis(h, mx.argsort(-h, axis=1)[:, :2], axis=1)))
        return mx.stack(ys, axis=1)


def test_tokens_of_a_model_that_chooses_units_have_states_and_no_gradient() -> None:
    mx.random.seed(0)
    model, tokens = Choosing(), mx.random.randint(0, KINDS, (B, T), key=mx.random.key(1))
    runner = ModelRunner(model, ncp.HeldOutBatch(tokens))
    assert "VJP with respect to indices" in runner.gradients.no_input_gradient
    with runner.analysing():
        (found,) = observe(runner, 0, {ncp.Need.STATES}).states
    h = mx.zeros((B, H))
    for t in range(T):
        h = model.cell(model.codes(tokens[:, t]), h)
        np.testing.assert_allclose(found.values[:, t], np.array(h), rtol=1e-5, atol=1e-6)


def batch() -> mx.array:
    x = mx.random.normal((B, T, 2), key=mx.random.key(0))
    kind = mx.random.randint(0, KINDS, (B, T, 1), key=mx.random.key(1)).astype(mx.float32)
    return mx.concatenate([x, kind], axis=-1)


def made(cls: type[Any]) -> Any:
    mx.random.seed(2)
    model = cls()
    mx.eval(model.parameters())
    return model


NAMES = ["speed", "load", "kind"]


@pytest.mark.parametrize("cls", [ByModule, ByModulePerStep, Compiled])
def test_an_index_that_reaches_a_module_is_a_constant(cls: type[Base]) -> None:
    model, x = made(cls), batch()
    runner = ModelRunner(model, ncp.HeldOutBatch(x, feature_names=NAMES))
    with runner.analysing():
        found = observe(runner, 0, {ncp.Need.INPUT_GRADIENT}).input_gradient
    kind = x[..., 2].astype(mx.int32)
    expected = mx.grad(lambda v: model.steps(v, kind)[:, -1].sum())(x[..., :2])
    np.testing.assert_allclose(found[..., :2], np.array(expected), rtol=1e-4, atol=1e-7)
    assert not found[..., 2].any()
    (note,) = runner.notes
    assert "codes gets 'kind' as indices" in note
    assert "'speed'" not in note


@pytest.mark.parametrize("cls", [ByTable, ByTake, ByOneHot, Inverting])
def test_only_attribution_is_skipped(cls: type[Any]) -> None:
    model, x, writer = made(cls), batch(), ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(x, feature_names=NAMES)
    with ncp.Monitor(model, held_out, writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        (note,) = (n for n in monitor.notes if n.startswith("attribution"))
    assert "no gradient by the inputs" in note
    assert "stop_gradient" in note
    assert ("'kind' may be one" in note) == (cls is not Inverting)
    ((_, found),) = writer.scalars("transitions/magnitude_mean")
    states = [np.zeros((B, H))]
    with_states = ModelRunner(model, held_out)
    assert [hook.name for hook in with_states.hook_points.cells] == ["cell"]
    h = mx.zeros((B, H))
    for t in range(T):
        if cls is Inverting:
            gram = x[:, t, :, None] * x[:, t, None, :] + 2 * mx.eye(3)
            given = (mx.array(np.linalg.inv(np.array(gram))) @ x[:, t, :, None])[..., 0]
        else:
            code = model.codes.weight[x[:, t, 2].astype(mx.int32)]
            given = mx.concatenate([x[:, t, :2], code], axis=-1)
        h = model.cell(given, h)
        states.append(np.array(h))
    steps = np.linalg.norm(np.diff(np.stack(states, 1), axis=1), axis=-1)[:, 1:]
    assert found == pytest.approx(steps.mean(), rel=1e-4)


@pytest.mark.parametrize("cls", [ByModule, ByTable, ByOneHot])
def test_occlusion_attributes_to_indices(cls: type[Base]) -> None:
    model, x = made(cls), batch()
    found = ncp.compute_temporal_importance(model, x, method="occlusion")
    values = np.array(x)
    kinds = values[..., 2].astype(int)
    # The most frequent kind: a mean of kinds is no kind.
    base = [*values[..., :2].mean(axis=(0, 1)), np.bincount(kinds.ravel()).argmax()]
    usual, expected = np.array(model(x))[:, -1, 0], np.zeros((T, 3))
    for t in range(T):
        for f in range(3):
            other = values.copy()
            other[:, t, f] = base[f]
            changed = np.array(model(mx.array(other)))[:, -1, 0]
            expected[t, f] = np.abs(usual - changed).mean()
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-3, atol=1e-6)


def test_what_the_message_advises_works() -> None:
    x = batch()
    kind = x[..., 2].astype(mx.int32)
    for cls, inputs in ((Stopped, x), (Beside, (x[..., :2], kind))):
        model = made(cls)
        runner = ModelRunner(model, ncp.HeldOutBatch(inputs))
        with runner.analysing():
            found = observe(runner, 0, {ncp.Need.INPUT_GRADIENT}).input_gradient
        expected = mx.grad(lambda v, m=model: m.steps(v, kind)[:, -1].sum())(x[..., :2])
        np.testing.assert_allclose(found[..., :2], np.array(expected), rtol=1e-4, atol=1e-7)


class TimeByTable(ByTable):
    """Elapsed times choose a row of a table."""

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return self.steps(x, mx.minimum(time_delta, KINDS - 1.0).astype(mx.int32))


class TimeByModule(ByModule):
    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        late = mx.minimum(time_delta, KINDS - 1.0).astype(mx.int32)
        return self.steps(x, late, time_delta[..., None])


@pytest.mark.parametrize("cls", [TimeByTable, TimeByModule])
def test_elapsed_times_as_indices(cls: type[Base]) -> None:
    model, x = made(cls), batch()[..., :2]
    dt = mx.random.uniform(0.2, 3.0, (B, T), key=mx.random.key(5))
    late = mx.minimum(dt, KINDS - 1.0).astype(mx.int32)
    held_out, writer = ncp.HeldOutBatch(x, dt), ncp.MemoryWriter()
    callbacks = callback_set("standard")
    (own,) = (n for n, c in enumerate(callbacks) if isinstance(c, ncp.GradientAttribution))
    callbacks[own] = ncp.GradientAttribution(method="input_x_gradient", baseline="zeros")
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        notes = [note for note in monitor.notes if "elapsed times" in note]
    assert len(notes) == 1
    assert ("codes gets the elapsed times as indices" in notes[0]) == (cls is TimeByModule)
    runner = ModelRunner(model, held_out)
    with runner.analysing():
        seen = observe(runner, 0, set(ncp.Need))
        values = seen.extra_passes.at_time_scales((2.0,)).values[2.0]
    np.testing.assert_allclose(values, np.array(model(x, 2 * dt))[:, -1, 0], rtol=1e-5)
    scale = dt[..., None] if cls is TimeByModule else 1.0
    by_input = mx.grad(lambda v: model.steps(v, late, scale)[:, -1].sum())(x)
    np.testing.assert_allclose(seen.input_gradient, np.array(by_input), rtol=1e-4, atol=1e-7)
    if cls is TimeByModule:
        by_time = mx.grad(lambda d: model.steps(x, late, d[..., None])[:, -1].sum())(dt)
        np.testing.assert_allclose(seen.time_gradient, np.array(by_time), rtol=1e-4, atol=1e-7)
    else:
        assert seen.time_gradient is None
    strength = (np.abs(np.array(x) * np.array(by_input)).mean(axis=0)).sum()
    ((_, found),) = writer.scalars("attribution/strength")
    assert found == pytest.approx(strength, rel=1e-4)


def test_methods_that_integrate_skip_times_without_a_gradient() -> None:
    model, x = made(TimeByTable), batch()[..., :2]
    dt = mx.random.uniform(0.2, 3.0, (B, T), key=mx.random.key(5))
    found = ncp.compute_temporal_importance(model, x, dt, method="integrated_gradients")
    assert found.time_delta_importance is None
    # Complete: what it attributes to the inputs is the change from their mean.
    base = mx.broadcast_to(x.mean(axis=(0, 1)), x.shape)
    change = np.array(model(x, dt) - model(base, dt))[:, -1, 0]
    assert np.array(found.signed).sum() == pytest.approx(change.mean(), rel=1e-3)
    occluded = ncp.compute_temporal_importance(model, x, dt, method="occlusion")
    assert occluded.time_delta_importance is not None


@pytest.mark.parametrize("cls", [ByTable, Inverting, InvertingCell])
def test_every_callback_runs_or_is_skipped_with_a_reason(cls: type[Any]) -> None:
    writer = ncp.MemoryWriter()
    model, held_out = made(cls), ncp.HeldOutBatch(batch())
    with ncp.Monitor(model, held_out, "full", writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        notes = monitor.notes
        left = {callback.name for callback in monitor.callbacks}
    assert not any("failed" in note or "Error" in note for note in notes)
    assert {"transitions", "hidden"} <= left
    assert {"attribution", "faithfulness"}.isdisjoint(left)
