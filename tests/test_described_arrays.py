"""Arrays say in the log what they are, and both of TensorBoard's loaders deliver them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from tensorboard import context
from tensorboard.backend.event_processing import (
    data_ingester,
    data_provider,
    plugin_event_multiplexer,
)
from tensorboard.data import server_ingester
from tensorboard.util import grpc_util
from view_logs import records, write_run

import ncp_callbacks as ncp
from ncp_callbacks.runs import read_run
from ncp_callbacks.screen import ARRAY_PLUGIN
from ncp_callbacks.view.api import answer
from ncp_callbacks.view.index import LogIndex
from ncp_callbacks.view.provider import ProviderSource

KIND = {"kind": "attribution", "axes": ("time step", "feature")}


@contextlib.contextmanager
def slow(log_dir: Path) -> Iterator[Any]:
    reader = plugin_event_multiplexer.EventMultiplexer(
        tensor_size_guidance=dict(data_ingester.DEFAULT_TENSOR_SIZE_GUIDANCE)
    )
    reader.AddRunsFromDirectory(str(log_dir))
    reader.Reload()
    yield data_provider.MultiplexerDataProvider(reader, str(log_dir))


@contextlib.contextmanager
def fast(log_dir: Path) -> Iterator[Any]:
    server = server_ingester.SubprocessServerDataIngester(
        server_ingester.get_server_binary(), str(log_dir), reload_interval=0,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
    )  # fmt: skip
    server.start()
    yield server.data_provider


@pytest.mark.parametrize("loader", [slow, fast])
def test_a_loader_delivers_arrays_and_their_description(loader: Any, tmp_path: Path) -> None:
    with contextlib.closing(ncp.TensorBoardWriter(tmp_path / "run")) as writer:
        for step in (1, 2, 3):
            values = np.full((3, 2), step)
            about = {"feature_names": ["heart rate", "Sauerstoff ☂"]}
            records = [ncp.Array("_ncp/a", values, **KIND, about=about), ncp.Scalar("b/c", 1.0)]
            writer.write(step, records)
    with loader(tmp_path) as provider:
        arguments: Any = {"experiment_id": "", "plugin_name": "ncp_callbacks"}
        end = time.monotonic() + 30
        listed: Any = {}
        while "run" not in listed and time.monotonic() < end:
            listed = provider.list_tensors(context.RequestContext(), **arguments)
        described = json.loads(listed["run"]["_ncp/a"].plugin_content)
        assert described == {
            "v": 1, "kind": "attribution", "axes": ["time step", "feature"], **about
        }  # fmt: skip
        read = provider.read_tensors(context.RequestContext(), **arguments, downsample=100)
        found = {datum.step: datum.numpy for datum in read["run"]["_ncp/a"]}
    for step in (1, 2, 3):
        np.testing.assert_array_equal(found[step], np.full((3, 2), step))


@pytest.mark.parametrize("loader", [slow, fast])
def test_the_view_gets_through_a_loader_what_it_reads_itself(loader: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0)
    own = LogIndex(tmp_path)

    def got(source: Any, name: str, **arguments: str) -> Any:
        found = answer(source, name, {"run": "run", **arguments})
        assert found.status == 200, found
        return json.loads(found.body)

    expected = got(own, "run")
    with loader(tmp_path) as provider:
        source, end = ProviderSource(provider), time.monotonic() + 30
        while "run" not in source.names() and time.monotonic() < end:
            time.sleep(0.2)
        found = got(source, "run")
        assert found.pop("version") != expected.pop("version")
        assert found == expected
        for tag, array in expected["arrays"].items():
            steps = ",".join(map(str, array["steps"]))
            asked = {"run": "run", "tag": tag, "steps": steps}
            assert answer(source, "arrays", asked) == answer(own, "arrays", asked)
        asked = {"tag": "_ncp/findings", "step": "20"}
        assert got(source, "document", **asked) == got(own, "document", **asked)


@contextlib.contextmanager
def reloading(kind: str, log_dir: Path, keep: int = 100) -> Iterator[tuple[Any, Any]]:
    """A provider, and a function that lets it load what was appended."""
    if kind == "slow":
        reader = plugin_event_multiplexer.EventMultiplexer(
            tensor_size_guidance=data_ingester.DEFAULT_TENSOR_SIZE_GUIDANCE | {ARRAY_PLUGIN: keep}
        )
        reader.AddRunsFromDirectory(str(log_dir))
        reader.Reload()
        yield data_provider.MultiplexerDataProvider(reader, str(log_dir)), reader.Reload
        return
    server = server_ingester.SubprocessServerDataIngester(
        server_ingester.get_server_binary(), str(log_dir), reload_interval=1,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
    )  # fmt: skip
    server.start()
    yield server.data_provider, lambda: None


@pytest.mark.parametrize("kind", ["slow", "fast"])
def test_a_loader_sends_only_what_is_new(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ncp_callbacks.view.provider._FEW_SECONDS", 0.0)
    names = ("_ncp/attribution_strength", "_ncp/hidden_units")

    def asked(source: Any, name: str, run: str, version: str = "") -> Any:
        return json.loads(answer(source, name, {"run": run, "version": version}).body)

    def steps_of(found: Any) -> list[list[int]]:
        tracks = [found.get("arrays", {}).get(tag, {}).get("steps", []) for tag in names]
        curves = [found.get("scalars", {}).get(tag, {}).get("steps", [])
                  for tag in ("val/loss", "a/b")]  # fmt: skip
        lows = found.get("scalars", {}).get("a/b", {}).get("low", [])
        return [*tracks, *curves, [None] * len(lows)]

    write_run(tmp_path / "b", 1, steps=(1,))
    writer, rng = ncp.TensorBoardWriter(tmp_path / "a"), np.random.default_rng(0)
    for step in (1, 2, 3):
        writer.write(step, records(rng))
    writer.flush()
    with (
        contextlib.closing(writer),
        reloading(kind, tmp_path) as (provider, reload),
        monkeypatch.context() as patch,
    ):
        source, known = ProviderSource(provider), {}

        def follow(run: str, wanted: set[int]) -> list[Any]:
            """What came until all of some steps is here."""
            came, end = [], time.monotonic() + 60
            seen: list[set[Any]] = [set(), set(), set(), set()]
            while not all(wanted <= steps for steps in seen):
                assert time.monotonic() < end
                reload()
                found = asked(source, "run", run, known.get(run, ""))
                if "version" not in found:
                    continue  # It isn't loaded yet.
                known[run] = found["version"]
                came.append(found)
                for steps, more in zip(seen, steps_of(found), strict=False):
                    steps.update(more)
            return came

        follow("a", {1, 2, 3})
        follow("b", {1})
        # Loaders are asked for what belongs to the run, and for nothing once they list nothing new.
        last = end = time.monotonic()
        while end - last < 1:  # Parts of the first load may still come.
            found = asked(source, "run", "a", known["a"])
            if found != {"version": known["a"]}:
                known["a"], last = found["version"], time.monotonic()
            end = time.monotonic()
        calls: list[Any] = []
        reads = {name: getattr(provider, name) for name in ("read_tensors", "read_scalars")}

        def counting(name: str) -> Any:
            def read(*of: Any, **more: Any) -> Any:
                calls.append(set(more["run_tag_filter"].runs))
                return reads[name](*of, **more)

            return read

        for name in reads:
            patch.setattr(provider, name, counting(name))
        assert asked(source, "run", "a", known["a"]) == {"version": known["a"]}
        assert calls == []
        writer.write(4, records(rng))
        writer.flush()
        came = follow("a", {4})
        assert calls
        assert all(runs == {"a"} for runs in calls)
        for found in came:
            if "arrays" in found:
                assert found["since"]
                assert all(set(steps) <= {4, None} for steps in steps_of(found))
        # Who knows nothing gets all.
        whole = asked(source, "run", "a")
        assert "since" not in whole
        assert steps_of(whole)[:4] == [[1, 2, 3, 4]] * 4


def test_a_loader_that_drops_snapshots_lets_the_run_be_sent_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ncp_callbacks.view.provider._FEW_SECONDS", 0.0)
    writer, rng = ncp.TensorBoardWriter(tmp_path / "run"), np.random.default_rng(0)

    def write(steps: range) -> None:
        for step in steps:
            writer.write(step, records(rng))
        writer.flush()

    write(range(1, 11))
    with contextlib.closing(writer), reloading("slow", tmp_path, keep=10) as (provider, reload):
        source = ProviderSource(provider)

        def asked(version: str = "") -> Any:
            found = answer(source, "run", {"run": "run", "version": version})
            return json.loads(found.body)

        first = asked()
        tag = "_ncp/attribution_strength"
        assert first["arrays"][tag]["steps"] == list(range(1, 11))
        write(range(11, 40))
        reload()
        found = asked(first["version"])
        # This loader keeps ten, of which the last is the newest.
        assert "since" not in found
        steps = found["arrays"][tag]["steps"]
        assert len(steps) == 10
        assert steps[-1] == 39
        run = read_run(tmp_path / "run")
        for step in steps:
            np.testing.assert_array_equal(
                source.run("run").array(tag, step), run.arrays[tag][step].astype("f4")
            )
        assert set(first["version"].split(".")[:1]) != set(found["version"].split(".")[:1])


def test_the_description_stands_once_and_the_reader_takes_it() -> None:
    from ncp_callbacks.writers.encoding import Encoder

    encoder = Encoder()
    contents = [
        encoder.values(ncp.Array("_ncp/a", np.zeros((1, 1)), **KIND))[0]
        .metadata.plugin_data.content
        for _ in range(3)
    ]  # fmt: skip
    assert [bool(content) for content in contents] == [True, False, False]
    plain = encoder.values(ncp.Array("_ncp/b", np.zeros(1)))[0]
    assert plain.metadata.plugin_data.content == b""
    assert plain.metadata.SerializeToString().endswith(b"\x20\x02")


def test_names_of_axes_fit_the_array() -> None:
    with pytest.raises(ValueError, match=r"axes=\('a', 'b'\) of '_ncp/a': pass a name for each"):
        ncp.Array("_ncp/a", np.zeros(3), axes=("a", "b"))


class Maps(ncp.Callback):
    """Log an array of each shape that is described."""

    def measure(self, observation: Any) -> Any:
        sequences = observation.inputs.shape[0]
        yield ncp.Array("_ncp/map", np.zeros((5, 2)), **KIND)
        yield ncp.Array("_ncp/paths", np.zeros((sequences, 5)), kind="x",
                        axes=("sequence", "time step"), about={"cell": "gru"})  # fmt: skip
        yield ncp.Array("_ncp/plain", np.zeros(2))


@pytest.mark.parametrize("background", [False, True])
def test_a_run_describes_its_arrays(background: bool) -> None:
    mx.random.seed(0)
    model = nn.Sequential(nn.GRU(2, 3), nn.Linear(3, 2))
    held_out = ncp.HeldOutBatch(
        mx.random.normal((4, 5, 2)), targets=mx.array([0, 1, 1, 0]),
        feature_names=["hr", "bp"], class_names=["calm", "worse"],
    )  # fmt: skip
    writer = ncp.MemoryWriter()
    options: Any = {"writer": writer, "every": 1, "background": background}
    with ncp.Monitor(model, held_out, [Maps(max_sequences=2)], **options) as monitor:
        monitor.on_step_end(1)
        monitor.on_step_end(2)
    arrays = {
        (step, record.tag): record for step, record in writer.records
        if isinstance(record, ncp.Array) and record.tag.startswith("_ncp/")
    }  # fmt: skip
    first = arrays[1, "_ncp/map"].about
    assert first["callback"] == "maps"
    assert first["feature_names"] == ["hr", "bp"]
    assert first["target"]
    paths = arrays[1, "_ncp/paths"].about
    assert paths["cell"] == "gru"
    assert len(paths["sequences"]) == 2
    assert paths["sequence_class"] == [[0, 1, 1, 0][index] for index in paths["sequences"]]
    assert paths["class_names"] == ["calm", "worse"]
    assert paths["held_out"] == first["held_out"]
    assert len(first["held_out"]) == 32
    assert arrays[2, "_ncp/map"].about == {}
    assert arrays[1, "_ncp/plain"].about == {}


def test_every_logged_share_and_its_ci_is_in_an_array() -> None:
    mx.random.seed(0)
    model = nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 2))
    names, y = ["hr", "bp", "Sauerstoff ☂"], mx.array([0, 1, 1, 0, 1, 0])
    held_out = ncp.HeldOutBatch(mx.random.normal((6, 5, 3)), targets=y, feature_names=names)
    writer = ncp.MemoryWriter()
    callbacks = [
        ncp.GradientAttribution(), ncp.GradientAttribution(target="loss", features=names[:1]),
        ncp.FeatureRemoval(),
    ]  # fmt: skip
    options: Any = {"writer": writer, "every": 1, "background": False}
    with ncp.Monitor(model, held_out, callbacks, **options) as monitor:
        monitor.on_step_end(1)
    records = {record.tag: record for step, record in writer.records if step}
    arrays = {t: r for t, r in records.items() if isinstance(r, ncp.Array) and r.kind == "shares"}
    found = {(tag, n): v for tag, a in arrays.items()
             for n, v in zip(a.about["feature_names"], a.values, strict=True)}  # fmt: skip
    compared = 0
    for tag, record in records.items():
        group, _, feature = tag.partition("_share/")
        if feature and feature != "other":
            expected = (record.value, *record.ci)
            np.testing.assert_allclose(found[f"_ncp/{group}_shares", feature], expected, rtol=1e-6)
            compared += 1
    assert compared == 3 + 1 + 3
    assert {len(a.values) for a in arrays.values()} == {3}


def test_the_reader_reads_them_as_before(tmp_path: Path) -> None:
    with contextlib.closing(ncp.TensorBoardWriter(tmp_path)) as writer:
        writer.write(3, [ncp.Array("_ncp/a", np.arange(6.0).reshape(3, 2), **KIND)])
    run = read_run(tmp_path)
    assert not run.warnings
    np.testing.assert_array_equal(run.arrays["_ncp/a"][3], np.arange(6.0).reshape(3, 2))
