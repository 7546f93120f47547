"""Models of modules that another process can't import, and scripts with closed standard streams."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.observer.placement import unimportable
from ncp_callbacks.runs import read_run

SOURCE = """
import mlx.nn as nn

class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def __call__(self, x):
        return self.layer(x)[:, -1, 0]
"""
X = np.random.default_rng(0).standard_normal((16, 3, 2)).astype(np.float32)


def made_by_hand(name: str, _: Path) -> types.ModuleType:
    module = types.ModuleType(name)
    exec(SOURCE, module.__dict__)
    return module


def from_a_folder_that_left_the_path(name: str, folder: Path) -> types.ModuleType:
    (folder / f"{name}.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(folder))


@pytest.mark.parametrize("make", [made_by_hand, from_a_folder_that_left_the_path])
def test_no_snapshot_is_lost_to_a_module_that_cannot_be_imported(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make("module_of_a_test", tmp_path)
    monkeypatch.setitem(sys.modules, "module_of_a_test", module)
    monkeypatch.setattr("ncp_callbacks.observer.placement.why_in_loop", lambda nbytes: None)
    held_out = ncp.HeldOutBatch(X)
    chosen = ncp.Monitor(module.Last(), held_out, "light", tmp_path / "run", every=1)
    with chosen:
        assert not chosen.in_background
        for step in range(1, 4):
            chosen.on_step_end(step)
    assert any("can't import the module 'module_of_a_test'" in note for note in chosen.notes)
    points = read_run(tmp_path / "run").scalars["attribution/entropy"]
    assert points.steps.tolist() == [1, 2, 3]
    asked = ncp.Monitor(
        module.Last(), held_out, "light", tmp_path / "asked", every=1, background=True
    )
    with pytest.raises(TypeError, match=r"let sys\.path have its folder, or pass background=False"):
        asked.start()
    assert not (tmp_path / "asked").exists()


def test_modules_that_are_installed_or_built_in_are_found() -> None:
    assert unimportable(pickle.dumps([np.float64(1), os.getcwd, sys.getrefcount, Path()])) is None
    assert unimportable(pickle.dumps(["json", "no module at all"])) is None


@pytest.mark.parametrize("closed", [(1,), (1, 2), (0, 1, 2)])
def test_what_is_printed_to_a_closed_stream_reaches_none_of_our_files(
    closed: tuple[int, ...], tmp_path: Path
) -> None:
    script = f"""
        import os
        import numpy as np
        import ncp_callbacks as ncp
        from ncp_callbacks.models import CfC

        for number in {closed}:
            os.close(number)
        held_out = ncp.HeldOutBatch(np.ones((16, 3, 2), np.float32), 1.0)

        class Head(ncp.Callback):
            def measure(self, observation):
                yield ncp.Scalar("head/steps", observation.step)

        given = dict(every=1, background=True, verbose=True)
        with ncp.Monitor(CfC(2, 4), held_out, [Head()], {str(tmp_path / "run")!r}, **given) as m:
            for step in range(1, 5):
                try:
                    os.write(1, b"loss 0.5 " * 100)
                except OSError:
                    pass
                m.on_step_end(step, loss=0.5)
            background = m.in_background
        with open({str(tmp_path / "notes")!r}, "w") as file:
            file.write(repr((m.notes, background)))
        os._exit(0)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], timeout=300, check=True,
        stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "notes").read_text() == "((), True)"
    run = read_run(tmp_path / "run")
    assert run.warnings == ()
    assert run.scalars["head/steps"].values.tolist() == [1, 2, 3, 4]
    assert run.scalars["train/loss"].values.tolist() == [0.5] * 4
