"""Held-out batches from lengths, lists, dicts and data frames."""

from __future__ import annotations

import datetime
from typing import Any

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ncp_callbacks as ncp


class Frame:
    """A data frame as pandas and polars have it: names of columns, and columns by name."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._columns = {name: np.array(values) for name, values in columns.items()}
        self.columns = list(self._columns)

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]


def plain(array: Any) -> Any:
    return None if array is None else np.array(array).tolist()


# --- lengths


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_lengths_are_the_mask_that_a_loop_makes(lengths: list[int]) -> None:
    inputs = np.ones((len(lengths), 5, 2), np.float32)
    mask = np.zeros((len(lengths), 5), bool)
    for i, length in enumerate(lengths):
        for t in range(length):
            mask[i, t] = True
    for given_lengths in (lengths, np.array(lengths), mx.array(lengths)):
        batch = ncp.HeldOutBatch(inputs, lengths=given_lengths)
        assert plain(batch.mask) == mask.tolist()


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([1, 2], ValueError, r"lengths has shape \(2,\); expected \(batch,\) = \(3,\)"),
        ([1.0, 2.0, 3.0], TypeError, "whole numbers"),
        ([1, 0, 2], ValueError, r"lengths\[1\] is 0: pass 1 to 5"),
        ([1, 2, 6], ValueError, r"lengths\[2\] is 6"),
        ([[1], [2], [3]], ValueError, "shape"),
    ],
)
def test_wrong_lengths_are_refused(lengths: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ncp.HeldOutBatch(np.ones((3, 5, 2), np.float32), lengths=lengths)


def test_lengths_and_a_mask_are_refused() -> None:
    with pytest.raises(ValueError, match="both mask= and lengths="):
        ncp.HeldOutBatch(np.ones((1, 2, 2)), mask=np.ones((1, 2), bool), lengths=[1])


# --- sequences

HR, BP = [[60, 62, 64], [70]], [[80, 81, 82], [90]]
HOURS = [[0.0, 1.0, 3.0], [5.0]]


def expected(batch: ncp.HeldOutBatch) -> None:
    assert plain(batch.inputs) == [[[60, 80], [62, 81], [64, 82]], [[70, 90], [0, 0], [0, 0]]]
    assert plain(batch.mask) == [[True, True, True], [True, False, False]]


def columns(**others: Any) -> list[dict[str, Any]]:
    return [
        {"hr": HR[i], "bp": BP[i], **{name: values[i] for name, values in others.items()}}
        for i in range(2)
    ]


def frame(**others: Any) -> Frame:
    """Return the lines of both sequences, in turns."""
    whole = {"id": ["a", "b", "a", "a"], "hr": [60, 70, 62, 64], "bp": [80, 90, 81, 82]}
    return Frame({**whole, **others})


def test_a_list_of_arrays() -> None:
    arrays = [np.array([HR[i], BP[i]], np.float64).T for i in range(2)]
    batch = ncp.HeldOutBatch.from_sequences(arrays)
    expected(batch)
    assert batch.time_delta is None
    assert batch.targets is None
    expected(ncp.HeldOutBatch.from_sequences([mx.array(a.astype("f4")) for a in arrays]))
    inputs = [{"inputs": a, "time_delta": np.ones(len(a)), "targets": 1} for a in arrays]
    with_time = ncp.HeldOutBatch.from_sequences(inputs, features=["hr", "bp"])
    expected(with_time)
    assert with_time.feature_names == ("hr", "bp")
    assert plain(with_time.targets) == [1, 1]
    assert plain(with_time.time_delta) == [[1, 1, 1], [1, 1, 1]]


def test_a_list_of_dicts() -> None:
    batch = ncp.HeldOutBatch.from_sequences(
        columns(time_delta=[[2, 3, 4], [5]], targets=[0, 1]), class_names=["lives", "dies"]
    )
    expected(batch)
    assert batch.feature_names == ("hr", "bp")
    assert batch.class_names == ("lives", "dies")
    # Elapsed time in padding is 1.
    assert plain(batch.time_delta) == [[2, 3, 4], [5, 1, 1]]
    assert plain(batch.targets) == [0, 1]


def test_times_become_elapsed_times() -> None:
    batch = ncp.HeldOutBatch.from_sequences(columns(hour=HOURS), time="hour")
    # The differences are 1 and 2, whose median is 1.5.
    assert plain(batch.time_delta) == [[1.5, 1, 2], [1.5, 1, 1]]
    assert batch.feature_names == ("hr", "bp")


def test_a_data_frame_is_grouped_in_the_order_of_first_lines() -> None:
    table = frame(hour=[0.0, 5.0, 1.0, 3.0], died=[0, 1, 0, 0], name=["x", "y", "x", "x"])
    batch = ncp.HeldOutBatch.from_sequences(
        table, by="id", features=["hr", "bp"], time="hour", targets="died"
    )
    expected(batch)
    assert plain(batch.time_delta) == [[1.5, 1, 2], [1.5, 1, 1]]
    assert plain(batch.targets) == [0, 1]
    expected(ncp.HeldOutBatch.from_sequences(frame(), by="id"))


def test_dates_are_seconds() -> None:
    day = datetime.datetime(2024, 1, 1)
    dates = [day + datetime.timedelta(minutes=m) for m in (0, 7, 1, 3)]
    table = frame(date=np.array(dates, "datetime64[us]"))
    batch = ncp.HeldOutBatch.from_sequences(table, by="id", time="date")
    assert plain(batch.time_delta) == [[90, 60, 120], [90, 1, 1]]


def test_times_far_from_zero_keep_their_digits() -> None:
    start = 1.7e9  # Seconds since 1970, which float32 holds to 128 s.
    batch = ncp.HeldOutBatch.from_sequences(
        columns(at=[[start, start + 1, start + 3], [start]]), time="at"
    )
    assert plain(batch.time_delta) == [[1.5, 1, 2], [1.5, 1, 1]]


@pytest.mark.parametrize(
    ("sequences", "options", "error", "words"),
    [
        ([], {}, ValueError, "is empty"),
        ("frame", {}, TypeError, "sequences is a str"),
        ({"hr": [1]}, {}, TypeError, "sequences is a dict"),
        (3, {}, TypeError, "sequences is a int"),
        (columns(), {"by": "id"}, ValueError, "no data frame was passed"),
        (frame(), {}, ValueError, "by=None is not a column.*'id', 'hr', 'bp'"),
        (frame(), {"by": "patient"}, ValueError, "by='patient' is not a column"),
        (columns(), {"features": ["hr", "spo2"]}, ValueError, "sequence 0 has no 'spo2'"),
        (columns(), {"features": "hr"}, TypeError, "one string"),
        (columns(), {"time": "hour"}, ValueError, "sequence 0 has no 'hour'"),
        (columns(hour=HOURS), {"time": "hour", "time_delta": "hour"}, ValueError, "not both"),
        (columns(hour=[[0, 1, 1], [5]]), {"time": "hour"}, ValueError, "0 does not increase"),
        (columns(hour=[[0, 1], [5]]), {"time": "hour"}, ValueError, "0 has 3 time.*2 in 'hour'"),
        (columns(spo2=[[1, 2], [3]]), {}, ValueError, "columns of sequence 0"),
        (columns(name=[["x"] * 3, ["y"]]), {}, TypeError, "'name' of sequence 0 has dtype"),
        ([np.ones((2, 3)), np.ones((2, 4))], {}, ValueError, "one shape"),
        ([np.ones(3)], {}, ValueError, r"sequence 0 has shape \(3,\)"),
        ([np.ones((0, 3))], {}, ValueError, r"sequence 0 has shape \(0, 3\)"),
        (frame(died=[0, 1, 1, 0]), {"by": "id", "targets": "died"}, ValueError, "sequence 'a'"),
        (Frame({"id": [], "hr": []}), {"by": "id"}, ValueError, "is empty"),
        (Frame({"id": [1]}), {"by": "id"}, ValueError, "no features"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    sequences: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ncp.HeldOutBatch.from_sequences(sequences, **options)


def test_a_frame_may_have_names_that_are_no_strings() -> None:
    class Numbered:
        columns = (0, 1)

        def __getitem__(self, key: int) -> Any:
            return (np.array([1, 1]), np.array([5.0, 6.0]))[key]

    batch = ncp.HeldOutBatch.from_sequences(Numbered(), by="0")
    assert plain(batch.inputs) == [[[5], [6]]]
    assert batch.feature_names == ("1",)


def test_a_data_frame_of_pandas() -> None:
    lines = {"id": list("abaa"), "hr": [60, 70, 62, 64], "bp": [80, 90, 81, 82]}
    dates = pd.to_datetime([f"2024-01-01 00:{m:02}" for m in (0, 7, 1, 3)])
    table = pd.DataFrame({**lines, "date": dates}, index=[9, 9, 3, 1])
    batch = ncp.HeldOutBatch.from_sequences(table, by="id", time="date")
    expected(batch)
    assert plain(batch.time_delta) == [[90, 60, 120], [90, 1, 1]]
    assert batch.feature_names == ("hr", "bp")


# --- what data frames hold


def hours(frame: pd.DataFrame, of: Any) -> Any:
    batch = ncp.HeldOutBatch.from_sequences(frame.assign(t=of), by="id", time="t")
    return (np.array(batch.time_delta) / 3600).tolist()


def test_dates_with_a_time_zone_and_durations_become_seconds() -> None:
    frame = pd.DataFrame({"id": [1, 1, 2, 2, 2], "a": [1.0, 2.0, 3.0, 4.0, 5.0]})
    durations = pd.to_timedelta([5, 6, 0, 2, 3], unit="h")
    expected = [[1.0, 1.0, 1 / 3600], [1.0, 2.0, 1.0]]
    dates = pd.Timestamp("2024-03-31") + durations
    for of in (dates, durations, list(durations.to_pytimedelta())):
        np.testing.assert_allclose(hours(frame, of), expected, rtol=1e-6)
    # Clocks went forward at two o'clock: from 1:00 to 3:00 it was one hour.
    clocks = pd.DatetimeIndex(["2024-03-31 01:00", "2024-03-31 03:00"]).tz_localize("Europe/Berlin")
    zoned = hours(frame.iloc[:2], clocks)
    assert zoned == [[1.0, 1.0]]
    assert hours(frame.iloc[:2], pd.Series(list(clocks), index=[0, 1], dtype=object)) == zoned


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_a_line_without_an_id_is_refused(missing: Any) -> None:
    frame = pd.DataFrame({"id": pd.Series(["p", missing], dtype=object), "a": [1.0, 2.0]})
    with pytest.raises(ValueError, match="line 1 of the data frame has no id of a sequence: 'id'"):
        ncp.HeldOutBatch.from_sequences(frame, by="id")


def test_numbers_beyond_float32_are_refused_before_they_become_infinite() -> None:
    frame = pd.DataFrame({"id": [1, 1], "a": [1.0, 1e39]})
    with pytest.raises(ValueError, match=r"'a' of sequence 1 has 1e\+39, which float32 can't hold"):
        ncp.HeldOutBatch.from_sequences(frame, by="id")
    inputs = np.ones((2, 3, 1))
    inputs[1, 1] = -1e300
    with pytest.raises(ValueError, match=r"inputs has -1e\+300, which float32 can't hold: use"):
        ncp.HeldOutBatch(inputs)
    inputs[1, 1] = np.inf  # It was infinite before: the monitor reports it.
    assert np.isinf(np.array(ncp.HeldOutBatch(inputs).inputs)).sum() == 1


def test_a_dict_and_a_list_of_sequences() -> None:
    long, short = np.ones((3, 2)), np.zeros((2, 2))
    frames = [pd.DataFrame(a, columns=["a", "b"]) for a in (long, short)]
    columns = [{"a": a[:, 0], "b": a[:, 1]} for a in (long, short)]
    for pair in ((long, short), frames, columns):
        for several in (dict(zip("pq", pair, strict=True)), list(pair)):
            batch = ncp.HeldOutBatch.from_sequences(several)
            assert plain(batch.inputs) == [[[1, 1]] * 3, [[0, 0]] * 3]
            assert plain(batch.mask) == [[True] * 3, [True, True, False]]
    with pytest.raises(ValueError, match="sequence 'q' has no 'b'"):
        ncp.HeldOutBatch.from_sequences({"p": columns[0], "q": {"a": [1.0]}})
    with pytest.raises(TypeError, match="a dict of either by name"):
        ncp.HeldOutBatch.from_sequences(columns[0])  # of one sequence
    with pytest.raises(TypeError, match="did you mean 'features'"):
        ncp.HeldOutBatch.from_sequences([long], feature=["a", "b"])  # type: ignore[call-arg]
