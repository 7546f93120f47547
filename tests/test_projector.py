"""Embeddings: files beside the log, as a real TensorBoard's Projector serves them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorboardX
from boards import Board
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from ncp_callbacks.records import MAX_POINTS, Embedding, Scalar
from ncp_callbacks.writers import (
    MemoryWriter,
    SummaryWriterAdapter,
    TensorBoardWriter,
    event_sink,
)
from ncp_callbacks.writers.projector import write_embedding

RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(12, 5))
LABELS = {"class": ["calm", "alarm"] * 6, "time": np.arange(12) / 8}


def config(log_dir: Path) -> Any:
    """The Projector's config, as TensorBoard parses it."""
    text = (log_dir / "projector_config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, ProjectorConfig())


def points(log_dir: Path, entry: Any) -> np.ndarray:
    return np.loadtxt(log_dir / entry.tensor_path, delimiter="\t", ndmin=2)


def table(log_dir: Path, entry: Any) -> list[list[str]]:
    lines = (log_dir / entry.metadata_path).read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return [line.split("\t") for line in lines]


# --- the record


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (np.zeros(5), {}, r"'h' have the shape \(5,\): pass \(points, dimensions\)"),
        (np.zeros((0, 3)), {}, r"shape \(0, 3\)"),
        (np.zeros((3, 0)), {}, r"shape \(3, 0\)"),
        (np.zeros((2001, 2)), {}, r"'h' has 2,001 points: pass at most 2,000"),
        (np.zeros((4, 2)), {"class": "abc"}, r"labels\['class'\] of 'h' has 3 entries for 4"),
    ],
)
def test_what_is_no_embedding(values: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Embedding("h", values, labels)


def test_memory_keeps_it() -> None:
    writer = MemoryWriter()
    record = Embedding("h", np.zeros((MAX_POINTS, 2)), description="States")
    writer.write(1, [record])
    assert writer.records == [(1, record)]
    assert writer.tags == ["h"]


# --- files


def test_points_and_labels_are_read_back(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.write(70, [Scalar("a", 1), Embedding("hidden/states", STATES, LABELS)])
    writer.close()
    assert writer.failure is None
    assert writer.tally[:3] == (1, 0, 1)
    (entry,) = config(tmp_path).embeddings
    assert entry.tensor_name == "hidden/states (step 70)"
    np.testing.assert_allclose(points(tmp_path, entry), STATES, rtol=1e-5)
    head, *rows = table(tmp_path, entry)
    assert head == ["class", "time"]
    assert [row[0] for row in rows] == LABELS["class"]
    assert [float(row[1]) for row in rows] == LABELS["time"].tolist()
    assert not list(tmp_path.rglob("*.part"))


def test_non_finite_points_are_skipped_with_their_labels(tmp_path: Path) -> None:
    states = STATES.copy()
    states[3, 1], states[7, 0] = np.nan, -np.inf
    write_embedding(tmp_path, 1, Embedding("some", states, {"number": range(12)}))
    write_embedding(tmp_path, 1, Embedding("none", np.full((3, 2), np.nan)))
    (entry,) = config(tmp_path).embeddings
    kept = [i for i in range(12) if i not in (3, 7)]
    np.testing.assert_allclose(points(tmp_path, entry), STATES[kept], rtol=1e-5)
    # With a single column TensorBoard would take the header for the first point's label.
    assert table(tmp_path, entry) == [["number", "point"], *([f"{i}"] * 2 for i in kept)]


def test_a_single_dimension_is_shown_along_a_line(tmp_path: Path) -> None:
    write_embedding(tmp_path, 1, Embedding("a", STATES[:, :1]))
    (entry,) = config(tmp_path).embeddings
    found = points(tmp_path, entry)
    np.testing.assert_allclose(found[:, 0], STATES[:, 0], rtol=1e-5)
    assert found.shape == (12, 2)
    assert not found[:, 1].any()


TAGS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), unique=True
)
CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.floats() | st.integers()


@given(TAGS.filter(lambda tags: len(tags) <= 4), st.lists(CELLS, min_size=3, max_size=3))
def test_any_tag_and_label_stay_within_the_format_and_the_folder(
    tmp_path_factory: pytest.TempPathFactory, tags: list[str], cells: list[Any]
) -> None:
    where = tmp_path_factory.mktemp("log")
    tags += ["../../out", "..", "a/b", "a_b", "a%2Fb", "# end of a"]
    tags = list(dict.fromkeys(tags))
    labels = {"a\tb\n": cells, "\u2028 c": [1, 2, 3]}
    for _ in range(2):
        for number, tag in enumerate(tags):
            write_embedding(where, 1, Embedding(tag, np.full((3, 2), number), labels))
    entries = config(where).embeddings
    assert [points(where, entry)[0, 0] for entry in entries] == list(range(len(tags)))
    for entry in entries:
        assert (where / entry.tensor_path).resolve().parent == where / "projector"
        assert [len(row) for row in table(where, entry)] == [2] * 4
    assert {path.name for path in where.iterdir()} == {"projector", "projector_config.pbtxt"}


def test_writing_again_replaces(tmp_path: Path) -> None:
    for resumed, step in ((None, 1), (2, 2)):
        writer = TensorBoardWriter(tmp_path, first_step=resumed)
        writer.write(step, [Embedding("a", STATES + step, LABELS), Embedding("b", STATES)])
        writer.write(step, [Embedding(f"only/{step}", STATES)])
        writer.close()
    entries = {entry.tensor_name: entry for entry in config(tmp_path).embeddings}
    assert list(entries) == ["a (step 2)", "b (step 2)", "only/1 (step 1)", "only/2 (step 2)"]
    np.testing.assert_allclose(points(tmp_path, entries["a (step 2)"]), STATES + 2, rtol=1e-5)


@pytest.mark.parametrize("ending", ["\n", "", "\r\n"])
def test_a_config_of_the_users_own_survives(tmp_path: Path, ending: str) -> None:
    mine = f'# Mine, ncp_callbacks.{ending}embeddings {{ tensor_name: "mine" }}{ending}'.encode()
    path = tmp_path / "projector_config.pbtxt"
    path.write_bytes(mine)
    for _ in range(2):
        write_embedding(tmp_path, 1, Embedding("a", STATES))
        assert path.read_bytes().startswith(mine)
    if ending:
        assert [e.tensor_name for e in config(tmp_path).embeddings] == ["mine", "a (step 1)"]


def test_beside_embeddings_of_the_users_own_writer(tmp_path: Path) -> None:
    mine = tensorboardX.SummaryWriter(str(tmp_path))
    adapter = SummaryWriterAdapter(mine)
    mine.add_embedding(STATES, metadata=LABELS["class"], tag="before")
    adapter.write(5, [Embedding("ours", STATES)])
    adapter.flush()
    mine.add_embedding(STATES, tag="after")
    adapter.write(6, [Embedding("ours", STATES + 1, LABELS)])
    adapter.close()
    mine.close()
    names = [entry.tensor_name for entry in config(tmp_path).embeddings]
    assert names == ["before:00000", "ours (step 6)", "after:00000"]


def test_a_writer_without_files_writes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tensorboardX.SummaryWriter("somewhere", write_to_disk=False)
    adapter = SummaryWriterAdapter(mine)
    adapter.write(1, [Embedding("a", STATES)])
    adapter.close()
    assert adapter.failure is None
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_written_lose_the_embedding_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = TensorBoardWriter(tmp_path)
    (tmp_path / "projector").write_text("a file in the way")
    for step in (1, 2):
        writer.write(step, [Embedding("a", STATES), Scalar("b", step)])
        writer.flush()
    writer.close()
    assert writer.failure is None
    assert writer.tally.failed_records == 2
    assert caplog.text.count("the Embedding 'a' can't be logged") == 1


# --- a real TensorBoard


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("projector")
    writer = TensorBoardWriter(where / "ours")
    records = [
        Embedding("hidden/states", STATES, LABELS),
        Embedding("größe: 1/2", STATES[:4], {"class": [0, 0, 1, 1]}),
        Embedding("zeros", np.zeros((3, 2)), {"time": [0.5, 1.5, 2.5]}),
    ]
    writer.write(9, [Scalar("a", 1), *records])
    writer.close()
    mine = tensorboardX.SummaryWriter(str(where / "mine"))
    mine.add_embedding(STATES, metadata=LABELS["class"], tag="own")
    adapter = SummaryWriterAdapter(mine)
    adapter.write(9, [Scalar("a", 1), Embedding("ours", STATES, LABELS)])
    adapter.close()
    mine.close()
    return where


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "slow"])
def board(log_dir: Path, request: pytest.FixtureRequest) -> Iterator[Board]:
    server = Board(log_dir, request.param)
    try:
        server.wait(lambda: len(server.get("scalars/tags")) == 2)
        yield server
    finally:
        server.close()


def test_the_projector_serves_points_and_labels(board: Board) -> None:
    assert set(board.get("projector/runs")) == {"ours", "mine"}
    info = board.get("projector/info", run="ours")["embeddings"]
    assert [(e["tensorName"], e["tensorShape"]) for e in info] == [
        ("hidden/states (step 9)", [12, 5]),
        ("größe: 1/2 (step 9)", [4, 5]),
        ("zeros (step 9)", [3, 2]),
    ]
    for entry, values in zip(info, (STATES, STATES[:4], np.zeros((3, 2))), strict=True):
        served = board.raw("projector/tensor", run="ours", name=entry["tensorName"])
        numbers = np.frombuffer(served, np.float32).reshape(entry["tensorShape"])
        np.testing.assert_allclose(numbers, values, rtol=1e-5)
    rows = [
        line.split("\t")
        for line in board.raw("projector/metadata", run="ours", name="hidden/states (step 9)")
        .decode()
        .splitlines()
    ]
    assert rows[0] == ["class", "time"]
    assert [row[0] for row in rows[1:]] == LABELS["class"]


def test_the_users_own_embedding_is_served_beside_ours(board: Board) -> None:
    info = board.get("projector/info", run="mine")["embeddings"]
    assert [e["tensorName"] for e in info] == ["own:00000", "ours (step 9)"]
    for entry in info:
        assert len(board.raw("projector/tensor", run="mine", name=entry["tensorName"])) == 240


def test_the_dashboard_is_offered(board: Board) -> None:
    def offered() -> bool:
        return bool(board.get("/data/plugins_listing")["projector"]["enabled"])

    assert board.wait(offered)


def test_files_are_written_by_the_writers_thread(tmp_path: Path) -> None:
    seen: list[int] = []
    original = event_sink.write_embedding

    def spy(*args: Any) -> None:
        seen.append(threading.get_ident())
        original(*args)

    writer = TensorBoardWriter(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_sink, "write_embedding", spy)
        writer.write(1, [Embedding("a", STATES)])
        writer.close()
    assert len(seen) == 1
    assert threading.get_ident() not in seen
    assert len(config(tmp_path).embeddings) == 1
