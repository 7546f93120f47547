"""Test that the contributor's guide does what it says: its blocks run, its paths exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import matplotlib.figure
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
BLOCK = re.compile(
    r"^(?:<!-- file: (?P<file>\S+) -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 5), nn.Linear(5, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.rnn(x))


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The names after every block was run, in order, with the files that blocks stand for."""
    folder = tmp_path_factory.mktemp("guide")
    mx.random.seed(0)
    held_out = ncp.HeldOutBatch(mx.random.normal((20, 6, 3)))
    names: dict[str, Any] = {
        "__name__": "guide", "ncp": ncp, "model": Net(), "held_out": held_out,
        "writer": ncp.MemoryWriter(),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for block in BLOCK.finditer(GUIDE):
            if block["file"]:
                path = folder / block["file"]
                path.parent.mkdir(exist_ok=True)
                path.write_text(block["code"])
            else:
                exec(compile(block["code"], "CONTRIBUTING.md", "exec"), names)
        yield names
    for module in [m for m in sys.modules if m.split(".")[0] == "state_norm"]:
        del sys.modules[module]


def test_the_callback_logs_its_scalar_and_its_picture(names: dict[str, Any]) -> None:
    writer = names["writer"]
    assert [step for step, _ in writer.scalars("state_norm/last")] == [5, 10]
    pictures = [record for _, record in writer.records if record.tag == "state_norm/curve"]
    assert len(pictures) == 2
    # Drawn by the observer's process, and other pictures at other steps.
    assert all(isinstance(picture, ncp.Picture) for picture in pictures)
    assert all(picture.png.startswith(b"\x89PNG") for picture in pictures)
    plot = sys.modules["state_norm.plot"].plot_state_norm
    figure = plot(np.array([0.5, 1.0]), step=5, limit=1.5)
    assert isinstance(figure, matplotlib.figure.Figure)
    assert figure.axes[0].get_ylim() == (0, 1.5)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.5, 1.0]


def test_the_analysis_of_the_guide(names: dict[str, Any]) -> None:
    state_norm = sys.modules["state_norm.analysis"].state_norm
    states = np.array([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [6.0, 8.0]]])
    # Mean squares 12.5 and 0, then 0 and 50.
    np.testing.assert_allclose(state_norm(states), np.sqrt([6.25, 25]))
    mask = np.array([[True, False], [True, True]])
    np.testing.assert_allclose(state_norm(states, mask), np.sqrt([6.25, 50]))


def test_the_state_of_the_callback_is_restored(names: dict[str, Any]) -> None:
    callback = names["StateNorm"]()
    callback.load_state_dict({"limit": 2.5})
    assert callback.state_dict() == {"limit": 2.5}


def test_the_folder_of_a_callback_is_short() -> None:
    code = "".join(block["code"] for block in BLOCK.finditer(GUIDE) if block["file"])
    assert len([line for line in code.splitlines() if line.strip()]) < 80


def test_the_writer_prints(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    names["PrintWriter"]().write(7, [ncp.Scalar("a/b", 0.5), ncp.Note("hello")])
    assert capsys.readouterr().out == "     7 a/b 0.5\n"


def test_commands_and_paths_exist() -> None:
    for path in re.findall(r"`(?:python )?((?:tests/|\.ci/)[\w./]+)", GUIDE):
        assert (ROOT / path).exists(), path
