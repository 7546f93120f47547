"""A worker process that does one thing at a time, for each line on its stdin.

One side::

    with Worker("peers.naive_mlx", sys.executable, size="S", log="/tmp/log") as worker:
        worker.versions                     # {"mlx": "0.32.4", ...}
        worker.ask("step")                  # {"seconds": 0.06}

The other::

    serve({"step": step, "snapshot": snapshot}, versions)

Commands and answers are JSON, one a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["PeerError", "Worker", "missing", "serve"]

_BENCHMARKS = Path(__file__).parent.parent


class PeerError(RuntimeError):
    """A worker can't do what is asked of it."""


class Worker:
    """The process of a peer; a context manager.

    Args:
        module: Its module, as in ``python -m``.
        python: The Python that has what it imports.
        options: Its command line's options.

    Raises:
        PeerError: If it doesn't start; the message says what is missing.
    """

    def __init__(self, module: str, python: str, **options: object) -> None:
        self._name = module
        arguments = [f"--{name}={value}" for name, value in options.items()]
        try:
            self._process = subprocess.Popen(
                [python, "-m", module, *arguments],
                cwd=_BENCHMARKS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        except OSError as error:
            raise PeerError(f"{module}: {python} can't be run: {error}") from None
        self.versions: dict[str, str] = self._read()

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Have a command carried out and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # why it ended is on its stderr; reading reports that it did
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"{self._name} ended with {self._process.wait()}; see its message")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self._process.wait()
            raise PeerError(answer["error"])
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()  # closes its stdin, which ends it


_answers: Any = None


def _answer(message: Mapping[str, Any]) -> None:
    global _answers
    if _answers is None:
        # What libraries print must not get between the answers.
        _answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
    _answers.write(json.dumps(message) + "\n")
    _answers.flush()


def missing(error: ImportError) -> None:
    """Report what this Python lacks, and end."""
    _answer(
        {
            "error": f"{sys.executable} can't run the PyTorch route ({error}). Install what it "
            "takes, pip install -e '.[peers]', or name a Python that has it with --peer-python"
        }
    )
    sys.exit(2)


def serve(commands: Mapping[str, Callable[..., dict[str, Any]]], versions: dict[str, str]) -> None:
    """Carry out commands until stdin is closed."""
    _answer(versions)
    for line in sys.stdin:
        message = json.loads(line)
        _answer(commands[message.pop("command")](**message))
