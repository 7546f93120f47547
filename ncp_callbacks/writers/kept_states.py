"""Keep the state of a monitor in files beside its log.

    write_state(log_dir, KeptState(300, json.dumps(state)))
    for step, path in state_files(log_dir):             # the newest first
        state = read_state(path)
    remove_states(log_dir, first=251)

A run whose process was killed goes on from them. There is a file for each snapshot, as nobody knows
from which checkpoint the training will go on; of older ones some. All together take at most 32 MB,
or what the two newest take. JSON holds a state, which can be read without MLX.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import Instruction
from .projector import replace_file

__all__ = [
    "MAX_BYTES",
    "MAX_STATES",
    "KeptState",
    "read_state",
    "remove_states",
    "state_files",
    "write_state",
]

MAX_STATES = 64
MAX_BYTES = 32 << 20
_FOLDER, _END = "monitor_state", ".json"


@dataclass(frozen=True)
class KeptState(Instruction):
    """Hold the state of a monitor as of the snapshot of a step, as JSON."""

    step: int
    json: str
    tag: str = "state of the monitor"


def write_state(log_dir: Path, kept: KeptState) -> None:
    """Write a state to a file of its own, whole or not at all.

    Raises:
        OSError: It can't be written.
    """
    folder = log_dir / _FOLDER
    folder.mkdir(exist_ok=True)
    replace_file(folder / f"{kept.step}{_END}", kept.json.encode())
    _thin([path for _, path in reversed(state_files(log_dir))])


def _thin(paths: list[Path]) -> None:
    """Remove states, from the oldest to the newest, until they are few and small; two stay."""
    sizes = {path: path.stat().st_size for path in paths}
    while len(sizes) > 2 and (len(sizes) > MAX_STATES or sum(sizes.values()) > MAX_BYTES):
        known = list(sizes)
        # The newest half stays, and older ones become the sparser the older they are.
        for path in known[1 : len(known) // 2 : 2] or known[:1]:
            path.unlink(missing_ok=True)
            del sizes[path]


def state_files(log_dir: Path) -> list[tuple[int, Path]]:
    """Return steps and files of the states that are kept, the newest first."""
    try:
        names = os.listdir(log_dir / _FOLDER)
    except OSError:
        return []
    steps = [name.removesuffix(_END) for name in names if name.endswith(_END)]
    numbers = sorted((int(step) for step in steps if step.isdecimal()), reverse=True)
    return [(number, log_dir / _FOLDER / f"{number}{_END}") for number in numbers]


def read_state(path: Path) -> dict[str, Any]:
    """Return a state that was kept.

    Raises:
        OSError: The file can't be read.
        ValueError: It holds no state.
    """
    state = json.loads(path.read_bytes())
    if not isinstance(state, dict) or not isinstance(state.get("callbacks"), dict):
        raise ValueError("it holds no state of a monitor")
    return state


def remove_states(log_dir: Path, first: int) -> None:
    """Remove the states of a step and of those after it."""
    for step, path in state_files(log_dir):
        if step >= first:
            with contextlib.suppress(OSError):
                path.unlink()
