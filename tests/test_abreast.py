"""Parts of a batch on streams of their own: the same numbers, and nothing left behind."""

from __future__ import annotations

import threading
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ncp_callbacks as ncp
from ncp_callbacks.instrument import Instrument, abreast, undisturbed
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.observation import Need, Observation

B, T, F, H = 7, 9, 3, 8


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = {"CfC": CfC, "LTC": LTC}[kind](F, H)
        self.second = nn.GRU(H, H) if kind == "LTC" else CfC(H, H)
        self.head = nn.Linear(H, 2)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        hidden = self.first(x, time_delta)[0]
        is_gru = isinstance(self.second, nn.GRU)
        return self.head(self.second(hidden) if is_gru else self.second(hidden, time_delta)[0])


def batch() -> ncp.HeldOutBatch:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, F)).astype(np.float32)
    mask = np.arange(T) < rng.integers(3, T + 1, (B, 1))
    return ncp.HeldOutBatch(x, rng.uniform(0.5, 2, (B, T)).astype(np.float32), mask=mask)


@pytest.fixture
def on_three_streams() -> object:
    with (
        mock.patch.object(abreast, "_cores", return_value=3),
        mock.patch.object(abreast, "_LEAST_FORWARD", 1),
        mock.patch.object(abreast, "_LEAST_GRADIENT", 1),
        mock.patch.object(mx, "stream", wraps=mx.stream) as stream,
    ):
        yield stream


@pytest.mark.parametrize("kind", ["CfC", "LTC"])
def test_gradients_are_those_of_the_plain_model(kind: str, on_three_streams: mock.Mock) -> None:
    mx.random.seed(1)
    model, held_out = Net(kind), batch()
    model.eval()
    instrument = Instrument(model, held_out, target=1)
    assert not any("than within the held-out batch" in note for note in instrument.notes)
    with undisturbed(model):
        seen = Observation(instrument, 1, frozenset(Need))
        used = on_three_streams.call_count
        gradients = seen.input_gradient, seen.time_gradient
        scaled = seen.values_at_scales([0.5, 3.0])
        further = seen.evaluate(time_delta=seen.time_delta[None] * 2, gradient=True)
    # For three parts each, in which MLX is told the stream, and for nothing else.
    assert used == 3
    assert on_three_streams.call_count == 9

    last = held_out.mask.sum(axis=1) - 1

    def target(x: mx.array, dt: mx.array) -> mx.array:
        return model(x, dt)[mx.arange(B), mx.array(last), 1]

    x, dt = held_out.inputs, held_out.flat_time_delta
    plain = mx.grad(lambda *a: target(*a).sum(), argnums=[0, 1])
    for found, expected in zip(gradients, plain(x, dt), strict=True):
        np.testing.assert_allclose(found, np.array(expected), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(seen.target_values, np.array(target(x, dt)), rtol=1e-5, atol=1e-7)
    for scale, values in scaled.items():
        np.testing.assert_allclose(values, np.array(target(x, dt * scale)), rtol=1e-5, atol=1e-6)
    for found, expected in zip(
        (further.input_gradient[0], further.time_gradient[0]), plain(x, dt * 2), strict=True
    ):
        np.testing.assert_allclose(found, np.array(expected), rtol=1e-5, atol=1e-7)
    states = model.first(x, dt)[0]
    np.testing.assert_allclose(seen.states[0].values, np.array(states), rtol=1e-5, atol=1e-6)


@pytest.fixture(params=[2, 3])
def beside(request: pytest.FixtureRequest) -> object:
    """Gradients in one part, other passes in as many as there are cores."""
    with (
        mock.patch.object(abreast, "_cores", return_value=request.param),
        mock.patch.object(abreast, "_LEAST_FORWARD", 1),
    ):
        yield


def no_further_pass() -> object:
    return mock.patch.object(Observation, "evaluate", side_effect=AssertionError("a further pass"))


def classified() -> ncp.HeldOutBatch:
    x = batch()
    labels = np.random.default_rng(1).integers(0, 2, B)
    return ncp.HeldOutBatch(x.inputs, x.flat_time_delta, targets=labels, mask=x.mask)


@pytest.mark.parametrize("kind", ["CfC", "LTC"])
@pytest.mark.parametrize("most_rows", [None, 3])
def test_scales_run_beside_a_small_gradient_pass(
    kind: str, most_rows: int | None, beside: object
) -> None:
    mx.random.seed(2)
    model, held_out = Net(kind), classified()
    model.eval()
    x, dt = held_out.inputs, held_out.flat_time_delta
    last = mx.array(held_out.mask.sum(axis=1) - 1)

    def at_end(scale: float) -> mx.array:
        return model(x, dt * scale)[mx.arange(B), last]

    # So that predictions differ.
    model.head.bias = model.head.bias - mx.array(np.median(np.array(at_end(1.0)), axis=0))
    instrument = Instrument(model, held_out, most_rows=most_rows)
    scales = [0.5, 1.0, 3.0]
    with undisturbed(model), no_further_pass():
        seen = Observation(instrument, 1, {Need.TIME_GRADIENT, Need.STATES}, scales=scales)
        values, losses = seen.values_at_scales(scales), seen.losses_at_scales(scales)
    followed = mx.argmax(at_end(1.0), axis=-1)
    assert len(set(followed.tolist())) == 2
    assert losses is not None
    for scale in scales:
        outputs = at_end(scale)
        np.testing.assert_allclose(
            values[scale], np.array(outputs[mx.arange(B), followed]), rtol=1e-5, atol=1e-6
        )
        expected = nn.losses.cross_entropy(outputs, held_out.targets)
        np.testing.assert_allclose(losses[scale], np.array(expected), rtol=1e-5, atol=1e-6)
    gradient = mx.grad(lambda d: model(x, d)[mx.arange(B), last, followed].sum())(dt)
    np.testing.assert_allclose(seen.time_gradient, np.array(gradient), rtol=1e-5, atol=1e-7)
    states = model.first(x, dt)[0]
    np.testing.assert_allclose(seen.states[0].values, np.array(states), rtol=1e-5, atol=1e-6)


def test_a_monitor_names_the_scales_of_whoever_looks_at_all_sequences(beside: object) -> None:
    writer = ncp.MemoryWriter()
    model = Net("CfC")
    with (
        ncp.Monitor(
            model, classified(), callbacks=[ncp.TimeSensitivity()], writer=writer, every=1
        ) as monitor,
        no_further_pass(),
    ):
        monitor.on_step_end(1)
    assert {"time_delta/sensitivity_x5", "time_delta/loss_x0.5"} <= set(writer.tags)


def test_what_does_not_fit_beside_a_pass_comes_after_it() -> None:
    model, held_out = Net("CfC"), batch()
    plain, tried = Instrument.variants, []

    def without_room(self: Instrument, *args: object, **options: bool) -> object:
        tried.append(options.get("milestones", False))
        if options.get("milestones"):
            raise RuntimeError("[malloc] Unable to allocate 9 bytes")
        return plain(self, *args, **options)  # type: ignore[arg-type]

    with (
        mock.patch.object(abreast, "_cores", return_value=2),
        mock.patch.object(abreast, "_LEAST_FORWARD", 200),
        mock.patch.object(Instrument, "variants", without_room),
        mock.patch.object(Instrument, "ways", side_effect=[2, 1, 1, 1, 1, 1]),
        undisturbed(model),
    ):
        instrument = Instrument(model, held_out, target=0)
        seen = Observation(instrument, 1, {Need.TIME_GRADIENT}, scales=[2.0])
        values = seen.values_at_scales([2.0])[2.0]
    assert tried == [True, False]
    last = mx.array(held_out.mask.sum(axis=1) - 1)
    model.eval()
    expected = model(held_out.inputs, held_out.flat_time_delta * 2)[mx.arange(B), last, 0]
    np.testing.assert_allclose(values, np.array(expected), rtol=1e-5, atol=1e-6)


def test_looks_on_ever_new_threads_make_no_ever_new_streams(on_three_streams: mock.Mock) -> None:
    model, held_out = Net("CfC"), batch()
    instrument = Instrument(model, held_out)
    found: list[np.ndarray] = []

    def look() -> None:
        with undisturbed(model):
            found.append(Observation(instrument, 1, {Need.INPUT_GRADIENT}).input_gradient)

    with (
        mock.patch.object(abreast, "_all", []),
        mock.patch.object(mx, "new_stream", wraps=mx.new_stream) as made,
    ):
        for _ in range(6):
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
    assert made.call_count == 4 * 2
    assert len(found) == 6
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-7)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(F + H, H)

    def __call__(self, x: mx.array, state: mx.array) -> mx.array:
        return mx.tanh(self.layer(mx.concatenate([x, state], axis=-1)))


class GoesOn(nn.Module):
    """Starts from the state of the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()
        self.last = None

    def __call__(self, x: mx.array) -> mx.array:
        fits = self.last is not None and len(self.last) == len(x)
        states = [self.last if fits else mx.zeros((len(x), H))]
        for step in range(x.shape[1]):
            states.append(self.cell(x[:, step], states[-1]))
        self.last = states[-1]
        return mx.stack(states[1:], axis=1)


class Centred(nn.Module):
    """Takes the mean of the batch away."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = CfC(F, H)

    def __call__(self, x: mx.array) -> mx.array:
        return self.whole(x - x.mean(axis=0))[0]


@pytest.mark.parametrize("kind", [GoesOn, Centred])
def test_sequences_that_have_to_do_with_each_other_stay_together(
    kind: type[nn.Module], on_three_streams: mock.Mock
) -> None:
    model, held_out = kind(), ncp.HeldOutBatch(batch().inputs)
    with undisturbed(model):
        expected = np.array(model(held_out.inputs))
    instrument = Instrument(model, held_out, target=0, at=0)
    with undisturbed(model):
        seen = Observation(instrument, 1, frozenset())
    np.testing.assert_allclose(seen.outputs, expected, rtol=1e-5, atol=1e-6)
    assert on_three_streams.call_count == 0
    assert sum("than within the held-out batch" in note for note in instrument.notes) == 1
    # It is true what the note says of fewer sequences, or of further passes.
    with undisturbed(model):
        seen = Observation(instrument, 1, frozenset())
        again = seen.evaluate(seen.inputs[None]).values[0]
        fewer = Observation(instrument, 1, frozenset(), max_sequences=2)
    other = (
        again - seen.target_values if kind is GoesOn else fewer.outputs - expected[fewer.indices]
    )
    assert np.abs(other).max() > 0.01 * np.abs(expected).max()


def test_nor_are_many_variants_of_them() -> None:
    model, held_out = Centred(), ncp.HeldOutBatch(batch().inputs)
    with mock.patch.object(abreast, "_cores", return_value=2), undisturbed(model):
        weight = Instrument(model, held_out)._weight
        # The batch itself would stay whole, four of it would not.
        with mock.patch.object(abreast, "_LEAST_FORWARD", 2 * B * weight):
            instrument = Instrument(model, held_out, target=0)
            assert abreast.ways(B * weight, gradient=False) == 1
            assert abreast.ways(4 * B * weight, gradient=False) == 2
            assert instrument.ways(4 * B, gradient=False) == 1


def test_what_is_too_small_stays_whole() -> None:
    with mock.patch.object(mx, "stream", wraps=mx.stream) as stream:
        model = Net("CfC")
        with undisturbed(model):
            Observation(Instrument(model, batch()), 1, frozenset(Need)).values_at_scales([2.0])
    assert stream.call_count == 0


@pytest.mark.parametrize(("work", "gradient", "expected"), [
    (0, False, 1), (699_999, False, 1), (700_000, False, 2), (10**9, False, 4),
    (2_399_999, True, 1), (2_400_000, True, 2),
])  # fmt: skip
def test_ways(work: int, gradient: bool, expected: int) -> None:
    with mock.patch.object(abreast, "_cores", return_value=64):
        assert abreast.ways(work, gradient=gradient) == expected
    with mock.patch.object(abreast, "_cores", return_value=1):
        assert abreast.ways(work, gradient=gradient) == 1


def test_training_is_bit_identical(on_three_streams: mock.Mock) -> None:
    import mlx.optimizers as optim

    def train(watched: bool) -> tuple[list[float], list[np.ndarray]]:
        mx.random.seed(0)
        model, held_out = Net("CfC"), batch()
        optimizer = optim.Adam(learning_rate=1e-2)
        grad = nn.value_and_grad(model, lambda x, dt: (model(x, dt) ** 2).mean())
        losses = []
        writer = ncp.MemoryWriter()
        monitor = ncp.Monitor(model, held_out, writer=writer, every=1 if watched else 10**9)
        with monitor:
            for step in range(1, 6):
                loss, gradients = grad(
                    mx.random.normal((B, T, F)), mx.random.uniform(0.5, 2, (B, T))
                )
                optimizer.update(model, gradients)
                losses.append(loss.item())
                monitor.on_step_end(step)
        return losses, [np.array(v) for _, v in tree_flatten(model.parameters())]

    with_looks, before = train(True), on_three_streams.call_count
    without = train(False)
    assert before >= 5 * 6
    assert with_looks[0] == without[0]
    for a, b in zip(with_looks[1], without[1], strict=True):
        np.testing.assert_array_equal(a, b)
