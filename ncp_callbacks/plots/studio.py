"""Pictures drawn in a process of their own, so that drawing takes no time from training::

    studio = Studio()
    png = studio.png("attribution/heatmap", plot_feature_importance, result, {"step": 100})
    studio.close()

A thread that draws holds the interpreter's lock, for which a training loop, itself Python, then
waits. The process runs nothing of the user's: it is a fresh interpreter that imports this module
(with ``multiprocessing`` it would import the training script), gets the numpy data of a picture
through a pipe, and sends back a PNG. It ends with the pipe, however this process ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from ..plotting.drawer import Drawer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DrawingError", "Studio", "serve"]

logger = logging.getLogger("ncp_callbacks")

# Isolated, so that a module beside the training script can't take the place of Python's own before
# this process's search path is there.
_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    f"from {__name__} import serve; serve()"
)
# Training and its data go first.
_NICE = 5
# Seconds. A picture takes a fraction of one, the first one a few; a process may also be stopped.
_LONGEST = 25.0
_PATIENCE = 2.0


class DrawingError(RuntimeError):
    """A picture couldn't be drawn; its message is the traceback from the other process."""


class Studio:
    """Draws pictures of many tags, as :class:`~.drawer.Drawer`; for the use of one thread.

    The process is started for the first picture. Where it can't be started, dies or gets stuck, and
    for plot functions of others, which it may not be able to import, pictures are drawn here.

    Args:
        process: Whether to have a process at all.
    """

    def __init__(self, *, process: bool = True) -> None:
        # In a frozen application the executable is the user's program.
        self._wanted = process and bool(sys.executable) and not getattr(sys, "frozen", False)
        self._process: subprocess.Popen[bytes] | None = None
        self._drawer: Drawer | None = None

    def png(
        self, tag: str, plot: Callable[..., Figure], data: Any, options: Mapping[str, Any]
    ) -> bytes:
        """``plot(data, **options)`` as a PNG, the next picture of this tag.

        Raises:
            DrawingError, Exception: What the plot function raises.
        """
        if self._wanted and hasattr(plot, "draw_on_page"):
            try:
                return self._elsewhere((tag, plot, data, dict(options)))
            except (OSError, EOFError, pickle.PickleError, TypeError, AttributeError) as error:
                self._wanted = False
                self.close()
                logger.info(
                    "pictures are drawn by a thread: the process for them failed: %r", error
                )
        if self._drawer is None:
            self._drawer = Drawer()
        return self._drawer.png(tag, plot, data, options)

    def _elsewhere(self, work: tuple[Any, ...]) -> bytes:
        message = pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
        if self._process is None:
            self._process = _started()
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        with _killed_after(_LONGEST, self._process):
            to.write(message)
            to.flush()
            drawn, result = pickle.load(back)
        if not drawn:
            raise DrawingError(result)
        png: bytes = result
        return png

    def kill(self) -> None:
        """End the process at once, also while another thread waits for its picture."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError, ValueError):
            # The end of the pipe doesn't come while a fork of this process has it, too.
            pickle.dump(None, process.stdin)  # type: ignore[arg-type]
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[bytes]) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    # No thread starts while the interpreter shuts down; then `close` of the log gives up in time.
    with contextlib.suppress(RuntimeError):
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _started() -> subprocess.Popen[bytes]:
    search_path = [os.path.abspath(p) for p in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # What is meant for this process, such as Ctrl-C, is not meant for that one.
        start_new_session=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    pickle.dump(search_path, process.stdin)
    return process


def serve() -> None:
    """What the process does: draw what comes, until nothing comes any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICE)
    work: IO[bytes] = sys.stdin.buffer
    # What anything prints must not get between the pictures.
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    drawer = Drawer()
    while True:
        try:
            picture = pickle.load(work)
        except EOFError:
            return
        if picture is None:
            return
        result: tuple[bool, bytes | str]
        try:
            result = True, drawer.png(*picture)
        except Exception:
            result = False, traceback.format_exc()
        try:
            pickle.dump(result, results, pickle.HIGHEST_PROTOCOL)
            results.flush()
        except BrokenPipeError:
            return
