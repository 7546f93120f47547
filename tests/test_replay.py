"""A replay logs what a monitor would have logged, and refuses checkpoints that it can't use."""

from __future__ import annotations

import dataclasses
import io
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ncp_callbacks as ncp
from ncp_callbacks.callbacks import callback_set
from ncp_callbacks.models import CfC

STEPS = (5, 20, 100, 300)


class Timed(nn.Module):
    """A CfC that takes elapsed times."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(3, 6, backbone_units=8), nn.Linear(6, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


class Gated(nn.Module):
    """A GRU, which takes none."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 5), nn.Linear(5, 2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.gru(x))


class TimeFirst(Gated):
    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x.swapaxes(0, 1)).swapaxes(0, 1)


class Wide(Timed):
    """A model of another structure."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)


def time_first(model: nn.Module, inputs: mx.array, time_delta: mx.array | None) -> mx.array:
    return model(inputs.swapaxes(0, 1)).swapaxes(0, 1)


def first_output(outputs: mx.array, targets: mx.array) -> mx.array:
    return outputs[:, -1, 0]


def batch(*, timed: bool = True, **keywords: Any) -> ncp.HeldOutBatch:
    rng = np.random.default_rng(3)
    return ncp.HeldOutBatch(
        rng.normal(size=(16, 6, 3)).astype(np.float32),
        time_delta=rng.uniform(0.5, 1.5, (16, 6)).astype(np.float32) if timed else None,
        **keywords,
    )


def masked() -> ncp.HeldOutBatch:
    lengths = np.array([3, 4, 5, 6] * 4)
    return batch(mask=np.arange(6) < lengths[:, None], targets=np.arange(16) % 2)


def trained(model: nn.Module, where: Path, suffix: str = ".safetensors") -> Iterator[int]:
    """Yield the steps of a made-up training that saves its weights at each."""
    mx.random.seed(7)
    for step in STEPS:
        weights = tree_flatten(model.parameters())
        model.load_weights([(k, v + 0.1 * mx.random.normal(v.shape)) for k, v in weights])
        model.save_weights(str(where / f"v2-step_{step}{suffix}"))
        yield step


def analysing_always(name: str) -> list[ncp.Callback]:
    """Return the callbacks of a set, which do at each snapshot what a replay does."""
    callbacks = callback_set(name)
    for callback in callbacks:
        callback.analyse_always()
    return callbacks


def watched(model: nn.Module, held_out: ncp.HeldOutBatch, where: Path, suffix: str = ".safetensors",
            callbacks: Any = None, **keywords: Any) -> ncp.MemoryWriter:  # fmt: skip
    """Return what a monitor logs of a training that saves checkpoints."""
    writer = ncp.MemoryWriter()
    if callbacks is None:
        callbacks = analysing_always("standard")
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1, **keywords) as monitor:
        for step in trained(model, where, suffix):
            monitor.on_step_end(step)
    return writer


def logged(writer: ncp.MemoryWriter) -> dict[tuple[int, str, str], Any]:
    """Return every bit of the numbers, histograms and arrays, by step, kind and tag."""
    found: dict[tuple[int, str, str], Any] = {}
    for step, record in writer.records:
        if isinstance(record, ncp.Figure | ncp.Text | ncp.Picture) or record.tag.startswith("moni"):
            continue
        parts = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
        bits = {
            name: (part.dtype, part.shape, part.tobytes())
            if isinstance(part, np.ndarray) and not part.dtype.hasobject
            else repr(part)
            for name, part in parts.items()
        }
        # A monitor describes the run before its first step, a replay at its first checkpoint.
        step = 0 if record.tag in ("_ncp/run", "_ncp/fingerprint") else step
        key = (step, type(record).__name__, record.tag)
        assert key not in found
        found[key] = bits
    return found


def same(one: ncp.MemoryWriter, other: ncp.MemoryWriter) -> None:
    first, second = logged(one), logged(other)
    assert first.keys() == second.keys()
    assert [key for key in first if first[key] != second[key]] == []
    assert {step for step, _, _ in first} >= set(STEPS)


def replayed(model: nn.Module, held_out: ncp.HeldOutBatch, checkpoints: Any,
             callbacks: Any = None, **keywords: Any) -> ncp.MemoryWriter:  # fmt: skip
    writer = ncp.MemoryWriter()
    ncp.replay(model, held_out, checkpoints, callbacks, writer=writer, **keywords)
    return writer


# ---- as a monitor


@pytest.mark.parametrize(
    ("build", "held_out", "keywords"),
    [
        (Timed, batch, {}),
        (Timed, masked, {"target": "loss"}),
        (Timed, batch, {"target": first_output}),
        (Gated, lambda: batch(timed=False), {"at": "mean"}),
        (TimeFirst, lambda: batch(timed=False), {"forward": time_first, "target": 1}),
    ],
    ids=["CfC with time", "mask and targets", "target callable", "GRU", "forward"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_replay_logs_what_a_monitor_logs(
    tmp_path: Path, build: Any, held_out: Any, keywords: Any, suffix: str
) -> None:
    live = watched(build(), held_out(), tmp_path, suffix, **keywords)
    again = replayed(build(), held_out(), tmp_path / f"*{suffix}", **keywords)
    assert {type(record) for _, record in live.records} >= {ncp.Scalar, ncp.Histogram}
    same(live, again)


def test_every_callback_logs_what_it_logs_in_a_monitor(tmp_path: Path) -> None:
    live = watched(Timed(), masked(), tmp_path, callbacks=analysing_always("full"))
    same(live, replayed(Timed(), masked(), tmp_path / "*", "full"))
    same(live, replayed(Timed(), masked(), tmp_path / "*", "full", n_jobs=2))


# Measured along axes that are refitted, from one checkpoint to the next, as far as they must.
ALONG_AXES = {
    f"hidden/{name}"
    for name in ("pc1_share", "pc2_share", "basis_captured", "basis_refits", "numbers_changed")
}


def test_jobs_depend_on_earlier_checkpoints_in_the_axes_of_states_only(tmp_path: Path) -> None:
    model = Timed()
    mx.random.seed(1)
    for step in range(1, 10):  # so that jobs haven't analysed all that came before
        weights = tree_flatten(model.parameters())
        model.load_weights([(k, v + 0.2 * mx.random.normal(v.shape)) for k, v in weights])
        model.save_weights(str(tmp_path / f"{step}.npz"))
    one = logged(replayed(model, masked(), tmp_path / "*", "full"))
    two = logged(replayed(model, masked(), tmp_path / "*", "full", n_jobs=2))
    assert one.keys() == two.keys()
    assert {tag for step, kind, tag in one if one[step, kind, tag] != two[step, kind, tag]} <= (
        ALONG_AXES
    )
    assert [key for key in one if key[0] <= 4 and one[key] != two[key]] == []


class Counter(ncp.Callback):
    """Counts its snapshots, and tells at the end."""

    needs = frozenset({ncp.Need.STATES})
    count = 0

    def measure(self, observation: Any) -> Any:
        self.count += 1
        yield ncp.Scalar(f"{self.name}/count", self.count)

    def finish(self, observation: Any) -> Any:
        yield ncp.Scalar(f"{self.name}/last", observation.step)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_callbacks_finish_once_and_their_schedules_are_not_used(
    tmp_path: Path, n_jobs: int
) -> None:
    list(trained(Timed(), tmp_path))
    callback = Counter(every=1000)
    writer = replayed(Timed(), batch(), tmp_path / "*", [callback], n_jobs=n_jobs)
    assert [step for step, _ in writer.scalars("counter/count")] == list(STEPS)
    assert writer.scalars("counter/last") == [(STEPS[-1], STEPS[-1])]


def test_a_second_replay_begins_anew(tmp_path: Path) -> None:
    list(trained(Timed(), tmp_path))
    callback = Counter()
    for _ in range(2):
        writer = replayed(Timed(), batch(), tmp_path / "*", [callback])
        assert writer.scalars("counter/count") == [(s, n + 1) for n, s in enumerate(STEPS)]
    assert callback.count == 0
    assert callback.every is None


# ---- ways to name checkpoints


def test_pairs_paths_and_home_name_the_same_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = watched(Timed(), batch(), tmp_path)
    files = {step: tmp_path / f"v2-step_{step}.safetensors" for step in STEPS}
    monkeypatch.setenv("HOME", str(tmp_path))
    for checkpoints in (
        str(tmp_path / "*.safetensors"),
        "~/v2-step_*.safetensors",
        list(files.items()),
        ((step, str(file)) for step, file in reversed(files.items())),
        [(np.int64(step), f"~/{file.name}") for step, file in files.items()],
    ):
        same(live, replayed(Timed(), batch(), checkpoints))


def test_steps_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    list(trained(Timed(), tmp_path))
    result = ncp.replay(Timed(), batch(), tmp_path / "*", "light", writer=ncp.MemoryWriter())
    assert result.steps == STEPS  # by name 100 comes before 20
    assert result.log_dir is None


def test_one_file_for_two_steps(tmp_path: Path) -> None:
    list(trained(Timed(), tmp_path))
    file = tmp_path / "v2-step_5.safetensors"
    writer = replayed(Timed(), batch(), [(1, file), (2, file)], [Counter()])
    assert writer.scalars("counter/last") == [(2, 2)]


# ---- wrong checkpoints


def wrong_checkpoints(where: Path) -> dict[str, tuple[Any, type[Exception], str]]:
    list(trained(Timed(), where))
    good, other = where / "v2-step_5.safetensors", where / "wide-6.safetensors"
    Wide().save_weights(str(other))
    missing, unnamed = where / "none-7.safetensors", where / "final.safetensors"
    unnamed.write_bytes(good.read_bytes())
    text = where / "notes-8.txt"
    text.write_text("lr 1e-3")
    fewer = where / "few-9.safetensors"
    mx.save_safetensors(str(fewer), {"head.bias": mx.zeros(2)})
    empty = where / "empty-10.safetensors"
    empty.write_bytes(b"")
    return {
        "missing": ([(5, good), (7, missing)], FileNotFoundError, f"{missing} doesn't exist"),
        "no match": (where / "nothing*.npz", FileNotFoundError, "pass a glob"),
        "another model": ([(5, good), (6, other)], ValueError, f"{other} don't fit the model"),
        "fewer weights": ([(5, good), (9, fewer)], ValueError, f"{fewer} don't fit the model"),
        "no step": (unnamed, ValueError, f"{unnamed} has no step in its name: pass pairs"),
        "two of a step": ([(5, good), (5, unnamed)], ValueError, "both of step 5: pass pairs"),
        "none": ([], ValueError, "checkpoints is empty: pass pairs"),
        "no pairs": ([good], TypeError, "pass pairs of a step and a file"),
        "no whole step": ([(1.5, good)], TypeError, "pass pairs of a step and a file"),
        "no list": (5, TypeError, "checkpoints is a int; pass pairs"),
        "other file": ([(8, text)], ValueError, f"{text} is neither .safetensors nor .npz: pass"),
        "directory": (where, ValueError, f"{where} is a directory: pass a glob"),
        "none readable": ([(10, empty)], ValueError, f"the checkpoint {empty} can't be read"),
    }


@pytest.mark.parametrize("kind", [
    "missing", "no match", "another model", "fewer weights", "no step", "two of a step", "none",
    "no pairs", "no whole step", "no list", "other file", "directory", "none readable",
])  # fmt: skip
def test_wrong_checkpoints_are_refused_before_there_is_a_log(tmp_path: Path, kind: str) -> None:
    (tmp_path / "weights").mkdir()
    checkpoints, error, message = wrong_checkpoints(tmp_path / "weights")[kind]
    with pytest.raises(error) as caught:
        ncp.replay(Timed(), batch(), checkpoints, log_dir=tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({}, TypeError, "neither log_dir= nor writer= was passed: pass log_dir="),
        ({"log_dir": "run", "on_error": "stop"}, ValueError, "pass 'disable' or 'raise'"),
        ({"log_dir": "run", "n_jobs": 0}, ValueError, "n_jobs=0: pass"),
        ({"log_dir": "run", "chunk_size": 0}, ValueError, "chunk_size=0: pass"),
        ({"log_dir": "run", "callbacks": "all"}, ValueError, "all"),
        ({"log_dir": "run", "target": "los"}, ValueError, "los"),
    ],
)
def test_wrong_arguments_are_refused_before_there_is_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keywords: Any, error: Any, message: str
) -> None:
    list(trained(Timed(), tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        ncp.replay(Timed(), batch(), "*.safetensors", **keywords)
    assert not Path("run").exists()


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("victim", STEPS)
def test_a_damaged_checkpoint_is_reported_and_the_others_go_on(
    tmp_path: Path, suffix: str, victim: int, n_jobs: int
) -> None:
    list(trained(Timed(), tmp_path, suffix))
    file = tmp_path / f"v2-step_{victim}{suffix}"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    writer = ncp.MemoryWriter()
    result = ncp.replay(Timed(), batch(), tmp_path / "*", writer=writer, n_jobs=n_jobs)
    rest = tuple(step for step in STEPS if step != victim)
    assert result.steps == rest
    (note,) = [note for note in result.notes if str(file) in note]
    assert "can't be read and is skipped" in note
    # The change is that since the last checkpoint that could be read.
    whole = replayed(Timed(), batch(), [(s, tmp_path / f"v2-step_{s}{suffix}") for s in rest])
    assert logged(writer) == logged(whole)


def test_a_checkpoint_that_vanishes_meanwhile_is_reported(tmp_path: Path) -> None:
    list(trained(Timed(), tmp_path))
    gone = tmp_path / f"v2-step_{STEPS[2]}.safetensors"

    class Deletes(Counter):
        def measure(self, observation: Any) -> Any:
            if observation.step == STEPS[1]:
                gone.unlink()
            return super().measure(observation)

    result = ncp.replay(Timed(), batch(), tmp_path / "*", [Deletes()], writer=ncp.MemoryWriter())
    assert result.steps == (*STEPS[:2], STEPS[3])
    assert any(f"{gone} can't be read and is skipped" in note for note in result.notes)


def test_a_flipped_bit_in_an_archive_is_reported(tmp_path: Path) -> None:
    list(trained(Timed(), tmp_path, ".npz"))
    file = tmp_path / f"v2-step_{STEPS[1]}.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(bytes(data))
    result = ncp.replay(Timed(), batch(), tmp_path / "*", "light", writer=ncp.MemoryWriter())
    # An archive has checksums, which MLX may or may not compare; nothing else is lost either way.
    assert set(result.steps) >= set(STEPS) - {STEPS[1]}
    assert (STEPS[1] in result.steps) != any(str(file) in note for note in result.notes)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_diverged_checkpoint_is_logged_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, n_jobs: int
) -> None:
    model = Timed()
    list(trained(model, tmp_path))
    weights = tree_flatten(model.parameters())
    file = str(tmp_path / f"v2-step_{STEPS[1]}.safetensors")
    mx.save_safetensors(file, {name: mx.full(v.shape, mx.nan) for name, v in weights})
    writer = ncp.MemoryWriter()
    with caplog.at_level(logging.WARNING):
        result = ncp.replay(model, batch(), tmp_path / "*", writer=writer, n_jobs=n_jobs)
    assert result.steps == STEPS
    assert any("non-finite" in note or "finite" in note or "NaN" in note for note in result.notes)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info] == []
    assert "Traceback" not in caplog.text
    entropies = writer.scalars("attribution/entropy")
    assert {step for step, value in entropies if np.isfinite(value)} >= set(STEPS) - {STEPS[1]}


# ---- the user's model and process


def test_the_model_and_random_streams_are_unchanged(tmp_path: Path) -> None:
    list(trained(Timed(), tmp_path))
    model = Timed()
    model.train()
    before = {name: (id(v), np.array(v).tobytes()) for name, v in tree_flatten(model.parameters())}
    states = mx.random.state[0].tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    replayed(model, batch(), tmp_path / "*")
    replayed(model, batch(), tmp_path / "*", n_jobs=2)
    after = {name: (id(v), np.array(v).tobytes()) for name, v in tree_flatten(model.parameters())}
    assert after == before
    assert model.training
    assert states == (
        mx.random.state[0].tolist(), np.random.get_state()[1].tolist(), random.getstate(),  # noqa: NPY002
    )  # fmt: skip


class Serving(Timed):
    """Holds what can't be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = iter(n for n in range(3))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_make_model_builds_what_cannot_be_copied(tmp_path: Path, n_jobs: int) -> None:
    live = watched(Timed(), batch(), tmp_path)
    model = Serving()
    with pytest.raises(TypeError, match=r"model\.batches .* can't be copied"):
        replayed(model, batch(), tmp_path / "*")
    again = replayed(model, batch(), tmp_path / "*", make_model=Timed, n_jobs=n_jobs)
    same(live, again)


# ---- in parallel


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_backends_of_joblib_log_the_same_numbers(tmp_path: Path, backend: str) -> None:
    live = watched(Timed(), batch(), tmp_path)
    with joblib.parallel_config(backend=backend):
        again = replayed(Timed(), batch(), tmp_path / "*", n_jobs=2)
    same(live, again)
    # In order, although jobs may end in another one.
    steps = [step for step, _ in again.records]
    assert steps == sorted(steps)


def test_n_jobs_minus_one_is_one_per_core(tmp_path: Path) -> None:
    live = watched(Timed(), batch(), tmp_path)
    same(live, replayed(Timed(), batch(), tmp_path / "*", n_jobs=-1))


class Fails(Counter):
    def measure(self, observation: Any) -> Any:
        if observation.step == STEPS[1]:
            raise ZeroDivisionError("on purpose")
        return super().measure(observation)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_callback_that_fails_is_disabled_or_raises(tmp_path: Path, n_jobs: int) -> None:
    list(trained(Timed(), tmp_path))
    keywords: Any = {"callbacks": [Fails(), ncp.StateTransitions()], "n_jobs": n_jobs}
    writer = ncp.MemoryWriter()
    result = ncp.replay(Timed(), batch(), tmp_path / "*", writer=writer, **keywords)
    assert result.steps == STEPS
    assert any("fails failed at step 20; fails disabled" in note for note in result.notes)
    assert [step for step, _ in writer.scalars("transitions/magnitude_mean")] == list(STEPS)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        replayed(Timed(), batch(), tmp_path / "*", on_error="raise", **keywords)


# ---- the log


def test_the_log_has_a_number_a_card_and_all_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = Timed()
    for k in range(40):  # more pictures than may wait to be drawn
        model.save_weights(str(tmp_path / f"{k}.safetensors"))
    (tmp_path / "runs" / "cfc").mkdir(parents=True)
    for number in ("cfc", "cfc-2"):
        result = ncp.replay(
            model, batch(), tmp_path / "*.safetensors", [ncp.StateSpace(), ncp.StateTransitions()],
            log_dir=tmp_path / "runs" / "cfc", run_config={"units": 6},
        )  # fmt: skip
        assert result.log_dir == str(tmp_path / "runs" / number)
    events = EventAccumulator(result.log_dir, size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    card = events.Tensors("monitor/run")[0].tensor_proto.string_val[0].decode()
    assert "on saved weights, after the training" in card
    assert "every_checkpoint" in card
    pictures = ["xai_hidden/pca", "xai_transitions/magnitude"]
    for tag in pictures:
        assert [event.step for event in events.Tensors(tag)] == list(range(40))
    assert "monitor/dropped_figures" not in tags["scalars"]


def test_progress_is_shown_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    list(trained(Timed(), tmp_path))
    for n_jobs in (1, 2):
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        replayed(Timed(), batch(), tmp_path / "*", "light", n_jobs=n_jobs)
        assert "replay" in terminal.getvalue()
        assert f"0/{len(STEPS)}" in terminal.getvalue()
