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
    with pytest.raises(TypeError, match=r"let sys\.path have its folder, and"):
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


TRAINS_WHEN_IMPORTED = (
    f"""
import os
import numpy as np
import ncp_callbacks as ncp
{SOURCE}"""
    + """
class Head(ncp.Callback):
    def measure(self, observation):
        yield ncp.Scalar("head/steps", observation.step)

def train(steps=3):
    held_out = ncp.HeldOutBatch(np.ones((16, 3, 2), np.float32))
    given = dict(every=1, verbose=False, background=BACKGROUND)
    with ncp.Monitor(Last(), held_out, [Head()], os.environ["RUN"], **given) as monitor:
        for step in range(1, steps + 1):
            monitor.on_step_end(step, loss=0.5)
    return monitor.in_background, monitor.notes

found = train()
"""
)


@pytest.mark.parametrize(
    ("background", "command", "runs"),
    [
        # While it is imported, it trains: only once, and analysed in the loop.
        ("None", "import trains; assert not trains.found[0]; print(len(trains.found[1]))", 1),
        # Afterwards, the observer may import it. Its monitors do nothing in that process.
        ("False", "import trains; trains.BACKGROUND = True; print(*trains.train())", 2),
    ],
)
def test_a_module_that_trains_when_it_is_imported_is_logged_once(
    background: str, command: str, runs: int, tmp_path: Path
) -> None:
    source = TRAINS_WHEN_IMPORTED.replace(
        "import os\n", f"import os\nBACKGROUND = {background}\n", 1
    )
    (tmp_path / "trains.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, env={**os.environ, "RUN": "logs/run"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if runs == 1:
        assert done.stdout == "1\n"
        assert "can't import the module 'trains'" in done.stderr
    else:
        assert done.stdout == "True ()\n"
    assert len(list((tmp_path / "logs").iterdir())) == runs
    for folder in (tmp_path / "logs").iterdir():
        assert read_run(folder).scalars["head/steps"].steps.tolist() == [1, 2, 3]
