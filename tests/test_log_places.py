"""Where a log may be, which process of a group writes it, and whose tags are whose."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_nets import TwoOutputs

import ncp_callbacks as ncp
from ncp_callbacks.ranks import rank
from ncp_callbacks.writers import as_directory

HELD_OUT = ncp.HeldOutBatch(np.random.default_rng(0).normal(size=(8, 5, 3)).astype("f4"))


def monitor(log_dir: Any = None, **options: Any) -> ncp.Monitor:
    options = {"every": 1, "verbose": False, "background": False, **options}
    return ncp.Monitor(TwoOutputs(), HELD_OUT, [ncp.StateTransitions()], log_dir, **options)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty directory, beside an empty home."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    for name in (*os.environ,):
        if name.startswith(("SLURM_", "OMPI_", "PMI", "MLX_RANK")):
            monkeypatch.delenv(name)
    return tmp_path / "home"


def events(directory: Path) -> list[Path]:
    return sorted(directory.glob("*tfevents*"))


# --- paths


@pytest.mark.parametrize(
    ("log_dir", "words"),
    [
        ("s3://bucket/run", r"SummaryWriter\('s3://bucket/run'\)"),
        ("gs://bucket/run", r"SummaryWriter\('gs://bucket/run'\)"),
        (Path("s3://bucket/run"), r"SummaryWriter\('s3://bucket/run'\)"),
        ("hdfs://name:9000/run", r"mounted folder.*copy it to 'hdfs://name:9000/run'"),
        ("file:///tmp/run", "pass the path, log_dir='/tmp/run'"),
        ("", r"log_dir='' is empty.*'\.'"),
        ("  ", "is empty"),
        ("a\0b", "zero character"),
        ("~nobody-of-this-name/run", r"no user 'nobody-of-this-name'.*'\./~nobody"),
    ],
)
def test_what_is_no_local_directory_is_refused_and_makes_nothing(log_dir: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        monitor(log_dir)
    with pytest.raises(ValueError, match=words):
        ncp.TensorBoardWriter(log_dir)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("log_dir", [3, b"runs", 1.5, ["runs"]])
def test_what_is_no_path_is_refused(log_dir: Any) -> None:
    with pytest.raises(TypeError, match=f"is a {type(log_dir).__name__}: pass a path"):
        monitor(log_dir)


def test_home_and_here(home: Path) -> None:
    with monitor("~/runs/a") as first:
        first.on_step_end(1)
    assert first.log_dir == str(home / "runs" / "a")
    assert len(events(home / "runs" / "a")) == 1
    with monitor(".") as second:
        second.on_step_end(1)
    assert second.log_dir == os.getcwd()
    assert len(events(Path())) == 1
    assert as_directory("C:/runs") == Path.cwd() / "C:" / "runs"  # One letter is a drive.
    assert as_directory("a:b") == Path.cwd() / "a:b"


def test_a_link_to_nowhere_is_named_with_its_target() -> None:
    Path("runs").symlink_to("../scratch/runs")
    with pytest.raises(NotADirectoryError, match=r"'.*/runs' is a link to '.*scratch/runs', which"):
        monitor("runs/a").start()
    assert [path.name for path in Path().iterdir()] == ["runs"]
    Path("../scratch/runs").mkdir(parents=True)
    with monitor("runs/a") as entered:
        entered.on_step_end(1)
    assert len(events(Path("../scratch/runs/a"))) == 1


def test_a_file_in_the_path_is_named() -> None:
    Path("runs").write_text("")
    with pytest.raises(NotADirectoryError, match=r"here/runs' is a file\. Pass another"):
        monitor("runs/a").start()


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (errno.ENOSPC, OSError, "Make room there"),
        (errno.EDQUOT, OSError, "Make room there"),
        (errno.EROFS, PermissionError, "Make it writable"),
        (errno.EACCES, PermissionError, "Make it writable"),
        (errno.ENAMETOOLONG, OSError, r"\). Pass a shorter name"),
        (errno.EIO, OSError, r"\). Pass another"),
    ],
)
def test_a_disk_that_takes_nothing_is_named_on_entering_and_no_run_is_left(
    number: int, error: type[OSError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("ncp_callbacks.writers.event_file.io.FileIO", Full)
    with pytest.raises(error, match=rf"here/runs/a'.*{words}") as raised:
        monitor("runs/a").start()
    assert type(raised.value) is error
    assert list(Path().iterdir()) == []


def test_a_second_run_in_the_current_directory_stays_inside_it() -> None:
    here = Path.cwd()
    before = {*here.parent.iterdir()}
    found = []
    for _ in range(3):
        with monitor(".") as entered:
            entered.on_step_end(1)
        found.append(entered.log_dir)
    assert found == [str(here), str(here / "run-2"), str(here / "run-3")]
    assert {*here.parent.iterdir()} == before


def test_a_current_directory_that_was_deleted(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError, match=r"log_dir='runs/a' is below the current directory"):
        monitor("runs/a").start()
    with monitor(tmp_path / "run") as entered:
        entered.on_step_end(1)
    assert len(events(tmp_path / "run")) == 1


# --- ranks


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 0),
        ({"PMI_RANK": "2"}, 2),
        ({"OMPI_COMM_WORLD_RANK": "3"}, 3),
        ({"MLX_RANK": "0", "PMI_RANK": "2"}, 0),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, 1),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "1"}, 0),
        ({"SLURM_PROCID": "1"}, 0),
        ({"PMI_RANK": "first"}, 0),
        ({"MV2_COMM_WORLD_RANK": "1"}, 1),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, 1),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 1),
        ({"RANK": "1"}, 0),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, 0),
        ({"RANK": "6", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 6),
        # Names that something else has set.
        ({"RANK": "8", "WORLD_SIZE": ""}, 0),
        ({"RANK": "8", "WORLD_SIZE": "4"}, 0),
        ({"RANK": "1", "WORLD_SIZE": "all"}, 0),
    ],
)
def test_ranks(
    variables: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank() == expected
    with monitor("run", verbose=None) as entered:
        entered.on_step_end(1, loss=1.0)
    printed = "".join(capsys.readouterr())
    if expected:
        assert f"this process has rank {expected}" in printed
        assert "log_on_all_ranks=True" in printed
        assert printed.count("\n") == 1
        assert entered.log_dir is None
        assert not Path("run").exists()
    else:
        assert printed == ""
        assert len(events(Path("run"))) == 1


@pytest.mark.parametrize(
    ("variables", "known"),
    [
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            "rank 1 of 2 (RANK=1, WORLD_SIZE=2)",
        ),
        (
            {"RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            "rank 1 of 2 (RANK=1, LOCAL_WORLD_SIZE=2)",
        ),
        (
            {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"},
            "rank 3 of 4 (SLURM_PROCID=3, SLURM_NTASKS=4)",
        ),
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
            "rank 1 of 2 (SLURM_PROCID=1, SLURM_STEP_NUM_TASKS=2)",
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"},
            "rank 3 of 8 (OMPI_COMM_WORLD_RANK=3, OMPI_COMM_WORLD_SIZE=8)",
        ),
        ({"PMI_RANK": "2", "PMI_SIZE": "3"}, "rank 2 of 3 (PMI_RANK=2, PMI_SIZE=3)"),
        ({"PMIX_RANK": "2"}, "rank 2 (PMIX_RANK=2)"),
        ({"MV2_COMM_WORLD_RANK": "1"}, "rank 1 (MV2_COMM_WORLD_RANK=1)"),
        ({"MLX_RANK": "1"}, "rank 1 (MLX_RANK=1)"),
    ],
)
def test_a_silent_process_says_in_whole_sentences_what_makes_it_so_and_how_to_log(
    variables: dict[str, str], known: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with monitor("run", verbose=None):
        pass
    assert capsys.readouterr().err == (
        f"ncp_callbacks: this process has {known} and logs nothing, because rank 0 logs for all "
        "that train one model together. If each process trains a model of its own, such as one for "
        "each seed, pass log_on_all_ranks=True, and a log_dir= of its own to each\n"
    )


def test_independent_processes_log_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "1")
    with monitor("run", log_on_all_ranks=True) as entered:
        entered.on_step_end(1, loss=1.0)
    assert len(events(Path("run"))) == 1


# --- tags


def test_a_tag_of_the_loop_that_is_a_callbacks_is_reported_once() -> None:
    with monitor(writer=ncp.MemoryWriter()) as entered:
        for step in (1, 2):
            entered.on_step_end(step, loss=1.0)
            entered.log_scalars(step, {"transitions/saturation": 1.0, "monitor/mine": 2.0})
            entered.log_scalars(step, {"transitions/of_mine": 1.0, "val/loss": 1.0})
    callbacks = {tag for tag in entered._given_writers[0].tags if tag.startswith("transitions/")}
    assert len(callbacks) > 3
    found = [note for note in entered.notes if "shows both as one curve" in note]
    assert len(found) == 2
    assert "'transitions/saturation' is logged by a callback and by the training loop" in found[0]
    assert "'monitor/mine' is logged by the monitor and by the training loop" in found[1]


def test_a_tag_that_is_no_string_loses_its_own_record() -> None:
    writer = ncp.MemoryWriter()
    with monitor(writer=writer) as entered:
        entered.on_step_end(1)
        entered.log_scalars(1, {5: 1.0, "val/loss": 2.0})  # type: ignore[dict-item]
    assert writer.scalars("val/loss") == [(1, 2.0)]
    assert [note for note in entered.notes if "tag=5 is a int: pass a str" in note]


def test_a_step_beyond_a_log_is_a_note_and_loses_its_own_records() -> None:
    with monitor("run") as entered:
        entered.log_scalars(1, {"val/loss": 2.0})
        entered.log_scalars(2**63, {"val/loss": 3.0})
        entered.log_scalars(3, {"val/loss": 4.0})
        entered._log.flush()
        entered.log_scalars(4, {"val/loss": 5.0})
    read = ncp.runs.read_run("run").scalars["val/loss"]
    assert read.values.tolist() == [2.0, 4.0, 5.0]
    assert [
        note for note in entered.notes if "records of step 9223372036854775808 are lost" in note
    ]
