"""Reading runs back: against TensorBoard's own reader, resumed, damaged, foreign."""

from __future__ import annotations

import ast
import io
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorboardX
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.record_writer import masked_crc32c

import ncp_callbacks as ncp
from ncp_callbacks.runs import Run, RunsError, frames, read_run

PACKAGE = Path(ncp.__file__).parent


def draw(data, **options):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.subplots().plot(data)
    return figure


def write_own(
    path: Path, steps=range(0, 100, 10), first_step=None, offset=0.0, config=None
) -> Path:
    """A run as this package writes it."""
    writer = ncp.TensorBoardWriter(path, first_step=first_step)
    if config:
        writer.log_run_config(config)
    for step in steps:
        rng = np.random.default_rng(step)
        writer.write(
            step,
            [
                ncp.Scalar("train/loss", offset + 1 / (1 + step)),
                ncp.Scalar("odd name (%)", float(step)),
                ncp.Histogram("weights/w", rng.normal(size=500), np.linspace(-3, 3, 31)),
                ncp.Array("_ncp/attribution_strength", rng.random((5, 4)).astype(np.float32)),
                ncp.Text("notes/n", f"step *{step}*"),
            ],
        )
        if step % 50 == 0:
            writer.write(step, [ncp.Figure("pictures/p", draw, np.arange(3.0) * step)])
    writer.close()
    assert writer.failure is None
    return writer.log_dir


def event_file(path: Path) -> Path:
    (file,) = (p for p in path.iterdir() if "tfevents" in p.name)
    return file


def reference(path: Path) -> EventAccumulator:
    events = EventAccumulator(
        str(path), size_guidance=dict.fromkeys(("scalars", "tensors", "images", "histograms"), 0)
    )
    events.Reload()
    return events


def assert_same_scalars(run: Run, events: EventAccumulator) -> None:
    assert list(run.scalars) == events.Tags()["scalars"]
    for tag, series in run.scalars.items():
        points = events.Scalars(tag)
        assert series.steps.tolist() == [p.step for p in points]
        np.testing.assert_array_equal(series.values, [p.value for p in points])


def test_a_log_of_this_package_is_read_as_tensorboard_does(tmp_path: Path) -> None:
    config = {"model": "cfc", "lr": 1e-3, "wired": True, "cell": {"units": 32}}
    path = write_own(tmp_path / "run", config=config)
    run, events = read_run(path), reference(path)
    assert run.warnings == ()
    assert run.steps == (0, 90)
    assert_same_scalars(run, events)
    assert run.hparams == {"model": "cfc", "lr": 1e-3, "wired": True, "cell.units": 32.0}
    for tag, arrays in run.arrays.items():
        points = events.Tensors(tag)
        assert list(arrays) == [p.step for p in points]
        for array, point in zip(arrays.values(), points, strict=True):
            np.testing.assert_array_equal(array, tensor_util.make_ndarray(point.tensor_proto))
    for step, point in zip(run.histograms["weights/w"], events.Tensors("weights/w"), strict=True):
        histogram = run.histograms["weights/w"][step]
        table = np.stack([histogram.left, histogram.right, histogram.counts], axis=1)
        np.testing.assert_array_equal(table, tensor_util.make_ndarray(point.tensor_proto))
    assert run.texts["notes/n"][20] == "step *20*"
    for step, point in zip((0, 50), events.Tensors("pictures/p"), strict=True):
        data = run.images["pictures/p"][step].data()
        assert data == point.tensor_proto.string_val[2]
        assert Picture.open(io.BytesIO(data)).size == (200, 100)


def test_a_log_of_tensorboardx_is_read_as_tensorboard_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with tensorboardX.SummaryWriter(str(tmp_path)) as writer:
        for step in range(30):
            writer.add_scalar("val/loss", rng.normal(), step)
            writer.add_scalar("nan", float("nan"), step)
        for step in range(3):
            writer.add_histogram("h", rng.normal(size=300), step)
            writer.add_image("i", rng.random((3, 8, 8)), step)
        writer.add_text("t", "hello", 1)
        _, start, _ = tensorboardX.summary.hparams({"lr": 0.1, "name": "x"}, {})
        writer.file_writer.add_summary(start)
    run, events = read_run(tmp_path), reference(tmp_path)
    assert_same_scalars(run, events)
    assert run.hparams == {"lr": 0.1, "name": "x"}
    assert list(run.texts.values()) == [{1: "hello"}]
    for step, point in zip(range(3), events.Images("i"), strict=True):
        assert run.images["i"][step].data() == point.encoded_image_string
    for step, point in zip(range(3), events.Histograms("h"), strict=True):
        histogram, said = run.histograms["h"][step], point.histogram_value
        assert histogram.counts.tolist() == said.bucket
        assert histogram.counts.sum() == 300
        assert histogram.left[0] == pytest.approx(said.min)
        assert histogram.right[-1] == pytest.approx(said.max)


def tensor_value(tag: str, tensor: TensorProto, plugin: str = "") -> Summary.Value:
    data = SummaryMetadata.PluginData(plugin_name=plugin)
    metadata = SummaryMetadata(plugin_data=data) if plugin else None
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    parts = (length, struct.pack("<I", masked_crc32c(length)), data)
    return b"".join((*parts, struct.pack("<I", masked_crc32c(data))))


def write_events(path: Path, *events: Event) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    data = b"".join(record(event.SerializeToString()) for event in events)
    (path / "events.out.tfevents.1.host").write_bytes(data)
    return path


def test_scalars_as_tensors_name_their_plugin_once(tmp_path: Path) -> None:
    values = [
        tensor_value("x", TensorProto(dtype=1, float_val=[1.5]), "scalars"),
        tensor_value("x", TensorProto(dtype=2, double_val=[2.5])),
        tensor_value("x", TensorProto(dtype=9, int64_val=[3])),
        tensor_value("x", TensorProto(dtype=1, tensor_content=struct.pack("<f", 4.0))),
        tensor_value("unknown", TensorProto(dtype=1, float_val=[1.0])),
    ]
    events = [Event(step=i, summary=Summary(value=[v])) for i, v in enumerate(values)]
    run = read_run(write_events(tmp_path / "r", *events))
    assert run.scalars["x"].values.tolist() == [1.5, 2.5, 3.0, 4.0]
    assert list(run.scalars) == ["x"]
    assert not run.warnings


def test_values_that_make_no_sense_are_skipped_with_a_warning(tmp_path: Path) -> None:
    shape = {"dim": [{"size": 3}]}
    values = [
        tensor_value("_ncp/a", TensorProto(dtype=1, float_val=[1, 2], tensor_shape=shape),
                     "ncp_callbacks"),
        tensor_value("_ncp/b", TensorProto(dtype=7, string_val=[b"x"]), "ncp_callbacks"),
        tensor_value("h", TensorProto(dtype=1, float_val=[1, 2, 3], tensor_shape=shape),
                     "histograms"),
        Summary.Value(tag="good", simple_value=1.0),
    ]  # fmt: skip
    run = read_run(write_events(tmp_path / "r", Event(step=1, summary=Summary(value=values))))
    assert list(run.scalars) == ["good"]
    assert not run.arrays
    assert not run.histograms
    (warning,) = run.warnings
    assert "_ncp/a at step 1 has 2 values for the shape (3,)" in warning
    assert "2 more" in warning


def test_a_resumed_run_hides_what_it_repeats(tmp_path: Path) -> None:
    path = write_own(tmp_path / "run", range(0, 100, 10))
    write_own(path, range(60, 150, 10), first_step=60, offset=5.0)
    run = read_run(path)
    steps = run.scalars["train/loss"].steps.tolist()
    assert steps == list(range(0, 150, 10))
    values = run.scalars["train/loss"].values
    assert (values[:6] < 5).all()
    assert (values[6:] > 5).all()
    assert list(run.arrays["_ncp/attribution_strength"]) == steps
    assert list(run.images["pictures/p"]) == [0, 50, 100]
    assert_same_scalars(run, reference(path))


def test_a_resumed_tensorboardx_run(tmp_path: Path) -> None:
    for first, suffix in ((0, ".a"), (20, ".b")):
        writer = tensorboardX.SummaryWriter(str(tmp_path), purge_step=first, filename_suffix=suffix)
        for step in range(first, first + 30):
            writer.add_scalar("x", first + step, step)
        writer.close()
    run = read_run(tmp_path)
    assert run.scalars["x"].steps.tolist() == list(range(50))
    assert_same_scalars(run, reference(tmp_path))


def test_a_growing_file_is_read_up_to_its_last_whole_record(tmp_path: Path) -> None:
    file = event_file(write_own(tmp_path / "run"))
    data = file.read_bytes()
    file.write_bytes(data[:-7])
    run = read_run(tmp_path / "run")
    assert "still being written" in run.warnings[0]
    file.write_bytes(data)
    assert read_run(tmp_path / "run").warnings == ()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\x00" * 5000, "no event records"),
        (b"hello, I am a text\n" * 100, "no event records"),
        (b"short", "no event records"),
        (record(b"no protocol buffer \xff\xff\xff"), "no event records"),
    ],
)
def test_foreign_files_are_reported_to_be(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(content)
    run = read_run(tmp_path)
    assert run.steps is None
    assert says in run.warnings[0]


def test_damage_costs_only_the_records_it_hits(tmp_path: Path) -> None:
    file = event_file(write_own(tmp_path / "run"))
    data = bytearray(file.read_bytes())
    offsets = [frame.offset for frame in frames.Frames(file) if b"train/loss" in frame.data]
    data[offsets[4] + 3] ^= 0x10  # A length,
    data[offsets[7] + 14] ^= 0x10  # and data.
    file.write_bytes(data)
    run = read_run(tmp_path / "run")
    assert "is damaged in 2 places" in run.warnings[0]
    assert run.scalars["train/loss"].steps.tolist() == [0, 10, 20, 30, 50, 60, 80, 90]


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match="can't be read"):
        read_run(tmp_path / "none")
    with pytest.raises(RunsError, match="no event files"):
        read_run(tmp_path)


def test_a_damaged_picture_is_not_shown(tmp_path: Path) -> None:
    path = write_own(tmp_path / "run", range(0, 20, 10))
    picture = read_run(path).images["pictures/p"][0]
    data = bytearray(picture.path.read_bytes())
    data[picture.offset + 400] ^= 1
    picture.path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        picture.data()
    run = read_run(path)
    assert 0 not in run.images.get("pictures/p", {})
    assert "is damaged in 1 place" in run.warnings[0]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_own(tmp_path_factory.mktemp("sound") / "run", range(0, 60, 10))
    return event_file(path).read_bytes()


@st.composite
def damages(draw_: st.DrawFn) -> list[tuple[str, float, bytes]]:
    kind = st.sampled_from(["cut", "flip", "insert", "delete", "replace"])
    one = st.tuples(kind, st.floats(0, 1), st.binary(min_size=1, max_size=40))
    return draw_(st.lists(one, min_size=1, max_size=4))


def damaged(data: bytes, damage: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, what in damage:
        at = int(where * max(0, len(data) - 1))
        if kind == "cut":
            data = data[:at]
        elif kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << what[0] % 8)]) + data[at + 1 :]
        elif kind == "insert":
            data = data[:at] + what + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + len(what) :]
        elif kind == "replace":
            data = data[:at] + what + data[at + len(what) :]
    return data


@settings(max_examples=150)
@given(damage=damages())
def test_whatever_happens_to_a_file_no_number_is_wrong(
    tmp_path_factory: pytest.TempPathFactory, sound: bytes, damage: list[tuple[str, float, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("fuzz")
    file = path / "events.out.tfevents.1.host"
    file.write_bytes(sound)
    right = read_run(path)
    broken = damaged(sound, damage)
    file.write_bytes(broken)
    run = read_run(path)
    lost = 0
    for tag, series in right.scalars.items():
        points = set(zip(series.steps.tolist(), series.values.tolist(), strict=True))
        now = run.scalars.get(tag)
        found = [] if now is None else zip(now.steps.tolist(), now.values.tolist(), strict=True)
        kept = set(found)
        assert kept <= points
        lost += len(points) - len(kept)
    assert set(run.scalars) <= set(right.scalars)
    for tag, arrays in run.arrays.items():
        for step, array in arrays.items():
            np.testing.assert_array_equal(array, right.arrays[tag][step])
    if lost and not sound.startswith(broken):  # A cut between records can't be seen.
        assert run.warnings


@settings(max_examples=60)
@given(content=st.binary(max_size=3000))
def test_foreign_bytes_never_raise(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("foreign")
    (path / "tfevents").write_bytes(content)
    run = read_run(path)
    assert run.steps is None
    assert run.warnings


def test_the_next_record_is_found_across_the_parts_in_which_it_is_searched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_own(tmp_path / "run", range(0, 60, 10))
    right = read_run(path)
    file = event_file(path)
    data = bytearray(file.read_bytes())
    data[2] ^= 1  # The length of the first record, which holds the version of the format.
    file.write_bytes(data)
    for chunk in (13, 17, 30, 1000, 1 << 20):
        monkeypatch.setattr(frames, "_CHUNK", chunk)
        run = read_run(path)
        assert "damaged in 1 place" in run.warnings[0]
        for tag, series in right.scalars.items():
            np.testing.assert_array_equal(series.values, run.scalars[tag].values)
        assert list(run.images["pictures/p"]) == list(right.images["pictures/p"])


def length_only(length: int) -> bytes:
    """A record's header that is sound and promises ``length`` bytes."""
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc32c(packed))


def shaped(tag: str, plugin: str, *shape: int, dtype: int = 1, **values) -> Summary.Value:
    dims = {"dim": [{"size": size} for size in shape]}
    return tensor_value(tag, TensorProto(dtype=dtype, tensor_shape=dims, **values), plugin)


HOSTILE = {
    "a huge shape with one value": shaped("_ncp/x", "ncp_callbacks", 10**5, 10**5, float_val=[1]),
    "a shape beyond any memory": shaped("_ncp/x", "ncp_callbacks", 2**62, 4, float_val=[1]),
    "a shape that overflows to 1": shaped("_ncp/x", "ncp_callbacks", 2**32, 2**32, float_val=[1]),
    "a huge shape without values": shaped("_ncp/x", "ncp_callbacks", 10**5, 10**5),
    "negative dimensions": shaped("_ncp/x", "ncp_callbacks", -2, -1, float_val=[1, 2]),
    "one negative dimension": shaped("_ncp/x", "ncp_callbacks", -1, float_val=[1]),
    "a hundred dimensions": shaped("_ncp/x", "ncp_callbacks", *[1] * 100, float_val=[1]),
    "another type": shaped("_ncp/x", "ncp_callbacks", 1, dtype=7, string_val=[b"x"]),
    "an unknown type": shaped("_ncp/x", "ncp_callbacks", 1, dtype=99, float_val=[1]),
    "half a number": shaped("_ncp/x", "ncp_callbacks", 1, tensor_content=b"123"),
    "the bytes of another type": shaped("_ncp/x", "ncp_callbacks", 1, dtype=2,
                                        tensor_content=b"1234"),
    "a scalar of 1e9 values": shaped("_ncp/x", "scalars", 10**9, float_val=[1]),
    "a scalar of 2 values": shaped("_ncp/x", "scalars", 2, float_val=[1, 2]),
    "a scalar without a value": shaped("_ncp/x", "scalars", 0),
    "a histogram of 1e9 values": shaped("_ncp/x", "histograms", 333333333, 3, double_val=[1]),
    "a histogram of 2 columns": shaped("_ncp/x", "histograms", 2, 2, float_val=[1, 2, 3, 4]),
    "a histogram without columns": shaped("_ncp/x", "histograms", 3, float_val=[1, 2, 3]),
    "a text of numbers": shaped("_ncp/x", "text", 1, float_val=[1]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_value_is_one_warning_and_takes_no_memory(tmp_path: Path, name: str) -> None:
    good = Summary.Value(tag="good", simple_value=1.0)
    events = [Event(step=i, summary=Summary(value=[HOSTILE[name], good])) for i in range(20)]
    path = write_events(tmp_path / "r", *events)
    read_run(path)  # What is imported and cached isn't what is measured.
    tracemalloc.start()
    try:
        run = read_run(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6
    assert run.scalars["good"].steps.tolist() == list(range(20))
    assert "_ncp/x" not in {*run.scalars, *run.arrays, *run.histograms, *run.texts}
    (warning,) = run.warnings
    assert "events.out.tfevents.1.host" in warning
    assert "_ncp/x at step 0" in warning
    assert "19 more" in warning


@pytest.mark.parametrize("length", [1 << 30, 1 << 40, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("after", [b"", b"x" * 100])
def test_a_record_longer_than_its_file_takes_no_memory(
    tmp_path: Path, length: int, after: bytes
) -> None:
    event = Event(step=1, summary=Summary(value=[Summary.Value(tag="good", simple_value=1.0)]))
    (file,) = write_events(tmp_path / "r", event).iterdir()
    size = file.stat().st_size
    file.write_bytes(file.read_bytes() + length_only(length) + after)
    tracemalloc.start()
    try:
        run = read_run(tmp_path / "r")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6
    assert run.scalars["good"].values.tolist() == [1.0]
    assert "ends within a record" in run.warnings[0]
    with pytest.raises(ValueError, match=f"no whole record begins at byte {size}"):
        frames.read_frame(file, size)


def test_reading_needs_neither_a_model_nor_mlx() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "scipy", "matplotlib", "jinja2", "crc32c"}
    allowed |= {"tensorboardX", "google"}
    pure = (
        "stats", "plotting", "screen", "findings", "records",
        "signal_handlers", "tables", "keywords",
    )  # fmt: skip
    for file in [*(PACKAGE / "runs").rglob("*.py"), *(PACKAGE / "findings").rglob("*.py")]:
        above = len(file.relative_to(PACKAGE).parts)  # Dots that lead to the package.
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == above:
                room = node.module or ""
                assert room.startswith(pure), f"{file.name} imports {room}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom):
                    names = [] if node.level else [node.module or ""]
                assert {name.split(".")[0] for name in names} <= allowed, file.name


def test_importing_the_package_does_not_import_runs() -> None:
    code = (
        "import sys, ncp_callbacks; "
        "assert not [m for m in sys.modules if m.startswith('ncp_callbacks.runs')]; "
        "import ncp_callbacks.runs; "
        "assert not {'tensorboardX', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reading_comparing_and_the_command_import_nothing_heavy() -> None:
    # Without what the package itself imports, which is no matter of these modules.
    code = f"""
import sys, types
package = types.ModuleType("ncp_callbacks")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["ncp_callbacks"] = package
for name in ("mlx", "mlx.core", "mlx.nn", "matplotlib", "jinja2", "tensorboardX"):
    sys.modules[name] = None
import ncp_callbacks.runs, ncp_callbacks.cli
assert not {{"ncp_callbacks.monitor", "ncp_callbacks.plots"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
