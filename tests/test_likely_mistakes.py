"""Likely mistakes are reported before training, with what is wrong, its value and the fix."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.model import ModelError, ModelRunner

B, T, F = 5, 9, 4


def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(F, 6), nn.Linear(6, 1)

    def __call__(self, x: mx.array, time: mx.array | None = None) -> mx.array:
        scale = 1.0 if time is None else mx.log1p(time)[..., None]
        return self.head(self.rnn(x * scale))


# ---- timestamps


@pytest.mark.parametrize("start", [0.2, 1.6e9])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_timestamps_are_noted_before_the_first_step(
    start: float, column: bool, background: bool
) -> None:
    rng = np.random.default_rng(1)
    times = start + np.cumsum(rng.uniform(60, 400, (B, T)), axis=1)
    held_out = ncp.HeldOutBatch(inputs(), times[..., None] if column else times)
    writer = ncp.MemoryWriter()
    with ncp.Monitor(Model(), held_out, "light", writer=writer, background=background) as monitor:
        notes = [note for note in monitor.notes if "timestamps" in note]
    assert len(notes) == 1
    assert "np.diff(timestamps" in notes[0]
    assert f"({times[0, 0]:.10g}, {times[0, 1]:.10g}, " in notes[0]


def test_timestamps_are_noted_where_only_real_time_steps_rise() -> None:
    times = np.cumsum(np.random.default_rng(1).uniform(0.5, 1, (B, T)), axis=1)
    mask = np.arange(T) < np.array([9, 5, 6, 9, 4])[:, None]
    times[~mask] = 1.0
    (note,) = ncp.HeldOutBatch(inputs(), times, mask=mask).notes
    assert "rises along every sequence" in note


@pytest.mark.parametrize("kind", ["random", "constant", "one falls", "two short ones"])
def test_elapsed_times_are_not_noted(kind: str) -> None:
    rng = np.random.default_rng(3)
    times = rng.uniform(0.5, 2, (B, T))
    x = inputs()
    if kind == "constant":
        times[:] = 0.5
    if kind == "one falls":
        times = np.cumsum(times, axis=1)
        times[2, 4] = 0.1
    if kind == "two short ones":  # which rise by chance in one of 36 batches
        times, x = np.cumsum(times, axis=1)[:2, :3], x[:2, :3]
    assert ncp.HeldOutBatch(x, times).notes == ()


# Five sequences that begin on days of their own, sampled about once a second.
STARTS = 1_700_000_000 + 86_400.0 * np.array([0, 11, 37, 38, 90])[:, None]
SAMPLED = STARTS + np.cumsum(np.random.default_rng(2).uniform(0.5, 1.5, (B, T)), axis=1)


@pytest.mark.parametrize(
    ("times", "date"),
    [
        # float32 holds 1.7e9 to the nearest 128 seconds.
        (SAMPLED.astype(np.float32), "seconds since 1970 are 2023-11-14"),
        (mx.array(SAMPLED.astype(np.float32)), "seconds since 1970 are 2023-11-14"),
        (mx.array(SAMPLED.astype(np.float32))[..., None], "seconds since 1970 are 2023-11-14"),
        ((SAMPLED * 1e3).astype(np.float32), "milliseconds since 1970 are 2023-11-14"),
        ((SAMPLED * 1e6).astype(np.float32), "microseconds since 1970 are 2023-11-14"),
        (mx.array((SAMPLED * 1e9).astype(np.int64)), "nanoseconds since 1970 are 2023-11-14"),
        ((SAMPLED / 86_400).astype(np.float32), "days since 1970 are 2023-11-14"),
        (np.full((B, T), 1.7e9), "seconds since 1970 are 2023-11-14"),
        (1.7e12, "milliseconds since 1970 are 2023-11-14"),
        # Sequences that were sorted backwards.
        (SAMPLED[:, ::-1].astype(np.float32), "seconds since 1970 are 2023-11-14"),
    ],
)
def test_timestamps_that_single_precision_makes_equal_are_noted(times: Any, date: str) -> None:
    (note,) = ncp.HeldOutBatch(inputs(), times).notes
    assert "hardly changes along a sequence (" in note
    assert date in note
    assert "while the timestamps are float64" in note
    assert "np.diff(timestamps, axis=1" in note


@pytest.mark.parametrize("seconds", [1.0, 60.0, 3600.0])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64, np.float32])
@pytest.mark.parametrize(
    ("unit", "per_second"),
    [("seconds", 1.0), ("milliseconds", 1e3), ("nanoseconds", 1e9), ("days", 1 / 86_400)],
)
def test_timestamps_of_any_unit_and_dtype_are_noted(
    seconds: float, dtype: Any, unit: str, per_second: float
) -> None:
    if unit == "days" and np.issubdtype(dtype, np.integer):
        seconds = 86_400
    times = (STARTS + seconds * np.arange(1, T + 1)) * per_second
    (note,) = ncp.HeldOutBatch(inputs(), times.astype(dtype)).notes
    assert f"{unit} since 1970 are 2023-11-1" in note
    assert ("/ 1e+09 for seconds" in note) is (unit == "nanoseconds")


def test_first_elapsed_times_that_are_timestamps_are_noted() -> None:
    # What np.diff(timestamps, prepend=0) gives.
    times = np.diff(SAMPLED, axis=1, prepend=0)
    (note,) = ncp.HeldOutBatch(inputs(), times).notes
    assert note.startswith(
        "time_delta is far larger at the first time step of every sequence than later (170000000"
    )
    assert "seconds since 1970 are 2023-11-14), as np.diff(timestamps, prepend=0)" in note
    given = np.diff(SAMPLED, axis=1, prepend=SAMPLED[:, :1] - 1)
    assert ncp.HeldOutBatch(inputs(), given).notes == ()


@pytest.mark.parametrize(
    "times",
    [
        1.0,
        86_400.0,  # a day in seconds, and in milliseconds
        86_400_000.0,
        1e9,  # a second in nanoseconds
        np.full((B, T), 19_700.0),  # a number of seconds that is also one of days since 1970
        19_700 + np.random.default_rng(0).uniform(-50, 50, (B, T)),
        np.tile([[18_000], [19_000.5], [20_000], [18_000], [21_000]], (1, T)),
        np.random.default_rng(0).uniform(1e8, 4e9, (B, T)),
        # Regular at first, sparse later.
        np.where(np.arange(T) < 6, 1.0, 5.0) * np.ones((B, 1)),
        np.where(np.arange(T) < 8, 1.0, 1.0 + np.arange(B)[:, None]),
        1 + 1e-3 * np.random.default_rng(0).standard_normal((B, T)),
        # Gaps that grow, in two sequences of three time steps.
        np.array([[1.0, 2.0, 3.0]] * 2),
        np.array([[1.0, 10.0, 100.0]] * 2),
    ],
)
def test_elapsed_times_of_many_kinds_are_not_noted(times: Any) -> None:
    x = inputs() if np.ndim(times) == 0 else inputs()[: len(times), : times.shape[1]]
    assert ncp.HeldOutBatch(x, times).notes == ()


@pytest.mark.parametrize("gaps", [np.arange(1.0, T + 1), np.logspace(0, 3, T)])
def test_gaps_that_grow_in_a_large_batch_are_taken_and_noted_with_what_to_do(
    gaps: np.ndarray,
) -> None:
    # Timestamps 1, 2, 3, ... are the same numbers.
    held_out = ncp.HeldOutBatch(inputs(), np.tile(gaps, (B, 1)))
    (note,) = held_out.notes
    assert note.endswith("If elapsed times do grow, ignore this")
    np.testing.assert_allclose(np.array(held_out.time_delta)[2], gaps, rtol=1e-6)


def test_what_the_note_advises_gives_elapsed_times() -> None:
    deltas = np.random.default_rng(1).uniform(0.5, 2, (B, T))
    timestamps = np.cumsum(deltas, axis=1)
    given = np.diff(timestamps, axis=1, prepend=timestamps[:, :1] - 1)
    held_out = ncp.HeldOutBatch(inputs(), given)
    assert held_out.notes == ()
    np.testing.assert_allclose(np.array(held_out.time_delta)[:, 1:], deltas[:, 1:], rtol=1e-5)


# ---- NaN and infinity


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_noted_with_their_place(value: float) -> None:
    x = inputs()
    x[3, 5, 1] = x[3, 6, 2] = x[4, 0, 0] = value
    (note,) = ncp.HeldOutBatch(x, feature_names=["hr", "bp", "t", "ph"]).notes
    assert note.startswith(
        f"inputs is {value} at sequence 3, time step 5, 'bp' (3 such, in 2 sequences)"
    )
    assert "mask=" in note
    runner = ModelRunner(Model(), ncp.HeldOutBatch(x))
    assert sum("inputs is" in note for note in runner.notes) == 1


def test_padding_need_not_be_finite() -> None:
    x, mask = inputs(), np.ones((B, T), bool)
    x[1, 6:], mask[1, 6:] = np.nan, False
    assert ncp.HeldOutBatch(x, mask=mask).notes == ()


def test_companions_and_targets_are_checked() -> None:
    static, y = np.ones((B, 2), np.float32), np.ones((B, T), np.float32)
    static[2, 1], y[4, 7] = np.nan, np.inf
    notes = ncp.HeldOutBatch({"x": inputs(), "static": static}, targets=y).notes
    assert notes[0].startswith("inputs['static'] is nan at sequence 2, index [1] (1 such")
    assert notes[1].startswith("targets is inf at sequence 4, time step 7 (1 such")


# ---- layout


def test_arrays_that_disagree_show_that_time_comes_last() -> None:
    x = inputs().swapaxes(1, 2)  # (B, F, T)
    fix = re.escape("pass inputs.swapaxes(1, 2)")
    for options in (
        {"mask": np.ones((B, T), bool)},
        {"time_delta": np.ones((B, T))},
        {"time_delta": np.ones((B, T, 1))},
        {"feature_names": list("abcd")},
    ):
        with pytest.raises(ValueError, match=fix):
            ncp.HeldOutBatch(x, **options)
        ncp.HeldOutBatch(x.swapaxes(1, 2), **options)
    with pytest.raises(ValueError, match="mask has shape") as other:
        ncp.HeldOutBatch(x, mask=np.ones((B, T + 1), bool))
    assert "swapaxes" not in str(other.value)


def test_a_model_that_runs_on_the_other_layout_only() -> None:
    model, x = Model(), inputs().swapaxes(1, 2)
    with pytest.raises(ModelError, match=r"It runs on inputs \(5, 9, 4\).*inputs.swapaxes\(1, 2\)"):
        ModelRunner(model, ncp.HeldOutBatch(x))
    ModelRunner(model, ncp.HeldOutBatch(x.swapaxes(1, 2)))


class ChannelsFirst(Model):
    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.rnn(x.swapaxes(1, 2)))


def test_a_model_that_takes_channels_first() -> None:
    x = inputs()
    with pytest.raises(ModelError, match=r"outputs have shape \(5, 9, 1\).*swapaxes\(1, 2\)"):
        ModelRunner(ChannelsFirst(), ncp.HeldOutBatch(x.swapaxes(1, 2)))
    with pytest.raises(ModelError, match=r"if the model takes features before time, pass forward="):
        ModelRunner(ChannelsFirst(), ncp.HeldOutBatch(x))
    runner = ModelRunner(
        ChannelsFirst(),
        ncp.HeldOutBatch(x),
        forward=lambda model, inputs, time_delta: model(inputs.swapaxes(1, 2)),
    )
    assert runner.calling.per_step


# ---- forward() without __call__


class Forward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Model()

    def forward(self, x: mx.array) -> mx.array:
        return self.inner(x)


class ForwardInTime(Forward):
    def forward(self, x: mx.array, dt: mx.array | None = None) -> mx.array:  # type: ignore[override]
        return self.inner(x, dt)


class Predict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Model()

    def predict(self, x: mx.array) -> mx.array:
        return self.inner(x)


@pytest.mark.parametrize(
    ("cls", "times", "call"),
    [
        (Forward, None, "model.forward(inputs)"),
        (ForwardInTime, 0.5, "model.forward(inputs, dt=time_delta)"),
        (ForwardInTime, None, "model.forward(inputs)"),
        (Predict, None, "model.predict(inputs)"),
    ],
)
def test_a_model_without_call(cls: type[nn.Module], times: Any, call: str) -> None:
    held_out = ncp.HeldOutBatch(inputs(), times)
    with pytest.raises(ModelError) as refused:
        ModelRunner(cls(), held_out)
    assert str(refused.value).endswith(f"pass forward=lambda model, inputs, time_delta: {call}")
    advised = eval(str(refused.value).split("pass forward=")[1])
    assert ModelRunner(cls(), held_out, forward=advised).calling.per_step


# ---- arrays of other libraries, by their methods alone


class Tensor:
    def __init__(self, array: np.ndarray, **options: bool) -> None:
        self._array, self.shape = array, array.shape
        self.requires_grad = options.get("requires_grad", False)
        self.is_cuda = options.get("is_cuda", False)

    def numpy(self) -> np.ndarray:
        return self._array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._array


class DataFrame:
    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape = array, array.shape

    def to_numpy(self) -> np.ndarray:
        return self._array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._array


class DataArray(DataFrame):
    dims = ("patient", "time", "feature")


class JaxArray:
    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape = array, array.shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._array


@pytest.mark.parametrize(
    ("wrapped", "fix"),
    [
        (Tensor, "{0}.numpy()"),
        (lambda a: Tensor(a, requires_grad=True), "{0}.detach().numpy()"),
        (lambda a: Tensor(a, is_cuda=True), "{0}.cpu().numpy()"),
        (DataArray, "{0}.to_numpy()"),
        (JaxArray, "np.asarray({0})"),
    ],
)
@pytest.mark.parametrize("what", ["inputs", "time_delta", "mask", "targets"])
def test_arrays_of_other_libraries(wrapped: Any, fix: str, what: str) -> None:
    given = {
        "inputs": inputs(),
        "time_delta": np.ones((B, T)),
        "mask": np.ones((B, T), bool),
        "targets": np.ones((B, T)),
    }
    given[what] = wrapped(given[what])
    with pytest.raises(TypeError) as refused:
        ncp.HeldOutBatch(**given)
    shape = tuple(given[what].shape)
    assert str(refused.value) == (
        f"{what} is a {type(given[what]).__name__} of shape {shape}: pass {fix.format(what)}"
    )


def test_a_table_and_a_companion_of_other_libraries() -> None:
    with pytest.raises(TypeError, match=r"inputs.to_numpy\(\).reshape\(batch, time_steps, feat"):
        ncp.HeldOutBatch(DataFrame(np.ones((B * T, F))))
    with pytest.raises(TypeError, match=r"inputs\['static'\] is a Tensor.*\['static'\]\.numpy\(\)"):
        ncp.HeldOutBatch({"x": inputs(), "static": Tensor(np.ones((B, 2)))})


# ---- dtypes


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((B, T, F), np.int64), r"inputs.astype\(mx.float32\)"),
        (np.ones((B, T, F), object), r"dtype object.*inputs.astype\(np.float32\)"),
        (np.full((B, T, F), "1"), r"inputs.astype\(np.float32\)"),
    ],
)
def test_inputs_that_are_no_floats(array: np.ndarray, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        ncp.HeldOutBatch(array)


def test_times_with_units() -> None:
    seconds = np.full((B, T), 2, "timedelta64[s]")
    with pytest.raises(TypeError, match=re.escape("time_delta / np.timedelta64(1, 's')")):
        ncp.HeldOutBatch(inputs(), seconds)
    ncp.HeldOutBatch(inputs(), seconds / np.timedelta64(1, "s"))
    with pytest.raises(TypeError, match=r"dtype datetime64.*such as 1970-01-01T00:00:00"):
        ncp.HeldOutBatch(inputs(), np.zeros((B, T), "datetime64[s]"))


SECONDS = np.random.default_rng(1).integers(1, 90, (B, T))
DATES = np.datetime64("2023-11-14T22:13:20", "s") + np.cumsum(SECONDS, axis=1)


@pytest.mark.parametrize(
    "dates",
    [DATES, DATES.astype("datetime64[ns]"), DATES.astype(object), DATES.astype(str)],
    ids=["seconds", "nanoseconds", "of Python", "text"],
)
def test_dates_are_refused_and_what_the_message_advises_gives_elapsed_times(
    dates: np.ndarray,
) -> None:
    with pytest.raises(TypeError, match="these are timestamps, such as 2023-11-14") as refused:
        ncp.HeldOutBatch(inputs(), dates)
    advised = re.search(
        r"in seconds, (np.diff.*), where first is.*such as (.*)", str(refused.value)
    )
    assert advised is not None
    timestamps = dates.astype("datetime64[us]")
    names = {"np": np, "timestamps": timestamps}
    given = eval(advised[1], names | {"first": eval(advised[2], names)})
    # The first advised time is one second, or one unit of it, before the first sample.
    np.testing.assert_array_equal(given[:, 1:], SECONDS[:, 1:])
    np.testing.assert_array_equal(given[:, 0], 1)
    assert ncp.HeldOutBatch(inputs(), given).notes == ()


def test_texts_of_no_dates_are_no_timestamps() -> None:
    with pytest.raises(TypeError, match=re.escape("pass numbers, such as time_delta.astype(")):
        ncp.HeldOutBatch(inputs(), np.full((B, T), "0.5"))


class OneFeature(nn.Module):
    """Takes (B, T, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 6), nn.Linear(6, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.rnn(x))


def test_counts_that_are_taken_for_tokens() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (B, T))
    with pytest.raises(ModelError, match=re.escape("inputs[..., None].astype(mx.float32)")):
        ModelRunner(OneFeature(), ncp.HeldOutBatch(counts))
    ModelRunner(OneFeature(), ncp.HeldOutBatch(mx.array(counts)[..., None].astype(mx.float32)))


def test_tokens_that_are_floats() -> None:
    with pytest.raises(ValueError, match=r"for tokens inputs.astype\(mx.int32\)"):
        ncp.HeldOutBatch(np.ones((B, T), np.float32))
