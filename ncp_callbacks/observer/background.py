"""Run an observer in a process of its own, at a lower priority, on a core that training leaves.

    observer = BackgroundObserver(deliver)
    observer.start(Start(first_snapshot, ...))
    observer.submit(request)         # microseconds, unless too many snapshots wait
    observer.close()                 # waits for the snapshots that are still being analysed

The process is a fresh interpreter that imports this module: never a fork, since MLX doesn't survive
one, and never the user's script once more. It talks through two pipes and ends with them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol

from ..descriptors import above_standard_streams, is_open
from ..errors import one_line
from ..plotting.renderer import Renderer
from ..records import Figure, Picture
from .observer import Analysis, Observer, Request, Settings
from .snapshot import Snapshot

__all__ = ["BackgroundObserver", "Deliver", "Start", "in_observer", "serve"]

_LOG = logging.getLogger("ncp_callbacks")

# Python's own modules come first on the search path, so that one beside the training script that is
# called queue.py can't take the place of what this process needs.
_COMMAND = (
    "import pickle, struct, sys; "
    "read = sys.stdin.buffer.read; "
    "size = read(8); "
    "size or sys.exit(); "  # The training process has ended already.
    "given = pickle.loads(read(struct.unpack('<Q', size)[0])); "
    "own = [path for path in sys.path if not path.endswith('-packages')]; "
    "sys.path[:] = [*own, *given]; "
    f"from {__name__} import serve; serve(int(sys.argv[1]))"
)
_NICE = 10
# Variables by which MLX, MPI and batch systems make a process a member of a group. Other variables
# of MLX are settings, which hold for the analyses, too.
_LAUNCHER_PREFIXES = (
    *("MLX_RANK", "MLX_WORLD_SIZE", "MLX_HOSTFILE", "MLX_RING_", "MLX_IBV_", "MLX_JACCL_"),
    *("MLX_MPI_", "NCCL_HOST_IP", "NCCL_PORT"),
    *("OMPI_", "PMI_", "PMIX_", "MV2_", "HYDRA_", "MPI_LOCAL", "SLURM_"),
)
# Seconds of waiting that need no message.
_QUIET = 2.0


class Deliver(Protocol):
    """Takes what comes out of the process; called on a thread of ours."""

    def analysis(self, analysis: Analysis) -> None:
        """Take an analysis, without its pictures."""

    def picture(self, step: int, wall_time: float, picture: Picture) -> None:
        """Take a picture of an analysis that came before."""

    def fault(self, message: str, details: str, *, unfit: bool) -> None:
        """Take the news that the process is gone, or that it can't begin (``unfit``)."""

    def dropped_pictures(self, count: int) -> None:
        """Take the number of pictures that weren't drawn so far."""

    def note(self, message: str) -> None:
        """Take something that the user should know."""

    def waiting(self, what: str) -> None:
        """Take the news that the end of the run waits for something."""


@dataclass(frozen=True, eq=False)
class Start:
    """What the process begins with.

    Attributes:
        snapshot: The whole model, packed with the held-out batch and the callbacks.
        settings: How it is analysed.
        state: Of callbacks, by name.
        memory_per_sequence: What the dry run showed, in bytes.
        device: Where to compute, "cpu" or "gpu"; None: where MLX does by default.
        picture_seconds: A picture that takes longer is given up.
    """

    snapshot: Snapshot
    settings: Settings
    state: Mapping[str, Any]
    memory_per_sequence: float | None = None
    device: str | None = None
    picture_seconds: float = 25.0


class BackgroundObserver:
    """The training process's end of an observer in another process.

    Args:
        deliver: Takes what comes back.
        max_waiting: Snapshots that may wait or be analysed; :meth:`submit` waits for room.
        max_bytes: Bytes of arrays that these may hold; one snapshot always may.

    Attributes:
        lost: Whether the process is gone.
        unfit: Whether the process ended before it could analyse, or the model or the callbacks
            couldn't be rebuilt there.
        patience: Seconds without any progress after which the end of the run no longer waits.
        patience_for_room: Seconds without any progress after which :meth:`submit` no longer waits.
        waited: Seconds that :meth:`submit` has waited for room, the start of the process apart.
        dropped: Snapshots that were not analysed: lost with the process, or for which there was no
            room.
    """

    def __init__(
        self, deliver: Deliver, *, max_waiting: int = 4, max_bytes: int = 256 << 20
    ) -> None:
        self.lost = self.unfit = False
        self.patience, self.patience_for_room = 300.0, 60.0
        self.waited = 0.0
        self.dropped = 0
        self._deliver = deliver
        self._max_waiting, self._max_bytes = max_waiting, max_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Reentrant, for a signal handler that closes while `submit` holds it.
        # Entered as a lock: an interrupt inside Condition.__enter__ would leave it locked for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        # Bytes of each snapshot that was handed over and has not come back, by number.
        self._waiting: dict[int, int] = {}
        self._number = self._flushed = 0
        self._progress = 0
        self._state: dict[str, Any] = {}
        self._ready = self._closing = self._closed = self._stuck = False
        self._received = self._asked_to_end = False
        self._pid = os.getpid()

    def start(self, start: Start) -> None:
        """Start the process; it gets ready while training goes on.

        Raises:
            OSError: If no process can be started.
        """
        self._state = dict(start.state)
        self._process = process = _started()
        assert process.stdin is not None
        assert process.stdout is not None
        self._outgoing.put(_search_path())
        self._outgoing.put(start)
        try:
            for target, pipe in ((self._receive, process.stdout), (self._send, process.stdin)):
                threading.Thread(
                    target=target, args=(process, pipe), name="ncp_callbacks observer", daemon=True
                ).start()
        except BaseException as error:
            process.kill()
            if isinstance(error, RuntimeError):
                raise OSError(f"its threads can't be started: {error}") from error
            raise

    # ---- the loop's thread

    def submit(self, request: Request) -> bool:
        """Hand over a snapshot, once there is room; return False if it was dropped.

        It waits no longer than ``patience_for_room`` without any progress; until there is some
        again, later snapshots are dropped at once.
        """
        if self.lost or self._closing or os.getpid() != self._pid:
            self.dropped += 1
            return False
        size = request.snapshot.nbytes
        began = time.monotonic()
        with self._lock:
            progress, since = self._progress, began
            starting = not progress
            while not self.lost and not self._has_room(size):
                now = time.monotonic()
                if self._progress != progress:
                    progress, since, self._stuck = self._progress, now, False
                if self._stuck or now - since > self.patience_for_room:
                    self._stuck = True
                    break
                self._changed.wait(min(1.0, self.patience_for_room))
            else:
                self._stuck = False  # There is room again.
            self.waited += 0.0 if starting else time.monotonic() - began
            if self.lost or self._stuck:
                self.dropped += 1
                return False
            self._number = number = self._number + 1
            try:
                self._waiting[number] = size
                self._outgoing.put(("request", number, request))
            except BaseException:
                # An interrupt: nobody must wait for what may not have been handed over.
                self._waiting.pop(number, None)
                raise
        return True

    def draw(self, step: int, wall_time: float, figures: list[Figure]) -> bool:
        """Let pictures be drawn in the process, which come back; return False if it is ending."""
        with self._lock:
            if self.lost or self._asked_to_end:
                return False
            if figures:
                self._outgoing.put(("draw", step, wall_time, figures))
            return True

    def _has_room(self, size: int) -> bool:
        full = len(self._waiting) >= self._max_waiting
        held = sum(self._waiting.values())
        return not self._waiting or not (full or held + size > self._max_bytes)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, once every snapshot so far is analysed."""
        self.wait()
        return self.known_state

    @property
    def known_state(self) -> dict[str, Any]:
        """What a resumed run needs, as of the last analysis that came back."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Give the callbacks what :meth:`state` returned."""
        self.wait()  # What comes back of earlier snapshots must not replace it.
        self._state.update(state)
        self._outgoing.put(("state", dict(state)))

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the snapshots that were handed over; return how many still wait.

        Args:
            timeout: Seconds; None: as long as there is progress within ``patience``.
        """
        return self._wait(lambda: not self._waiting, timeout)

    def wait_for_pictures(self) -> bool:
        """Wait for what was handed over, and return false where that makes no progress."""
        with self._lock:
            if self.lost or self._asked_to_end or os.getpid() != self._pid:
                return True  # Nothing comes any more, which was reported.
            self._number = number = self._number + 1
            self._outgoing.put(("flush", number))
        self._wait(lambda: self._flushed >= number, None)
        return self.lost or self._flushed >= number

    def close(self, timeout: float | None = None) -> int:
        """Wait for what is outstanding, then end the process; return how many were dropped.

        Args:
            timeout: As for :meth:`wait`; pictures get as long again.
        """
        if self._process is None or os.getpid() != self._pid:
            return self.dropped
        began = time.monotonic()

        def left() -> float | None:
            return None if timeout is None else max(0.0, began + timeout - time.monotonic())

        try:
            waiting = self.wait(_QUIET if timeout is None else left())
            if waiting and timeout is None:
                self._deliver.waiting(f"{waiting} snapshot{'s' * (waiting != 1)} to be analysed")
                waiting = self.wait()
            with self._lock:
                self._asked_to_end = True
                self._outgoing.put("close")
            if not waiting:
                self._wait(lambda: self._closed, _QUIET if timeout is None else left())
                if timeout is None and not self._closed and not self.lost:
                    self._deliver.waiting("pictures to be drawn")
                    self._wait(lambda: self._closed, None)
        finally:
            self._end()
        return self.dropped

    def _wait(self, done: Callable[[], bool], timeout: float | None) -> int:
        if os.getpid() != self._pid:  # a fork has none of the threads
            return 0
        began = time.monotonic()
        with self._lock:
            progress, since = self._progress, began
            while not (self.lost or done()):
                now = time.monotonic()
                if self._progress != progress:
                    progress, since = self._progress, now
                limit = since + self.patience if timeout is None else began + timeout
                if now >= limit:
                    break
                self._changed.wait(min(1.0, limit - now))
            return len(self._waiting)

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        self._closing = True
        self._outgoing.put(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2.0 if self._closed else 0.0)
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2.0)
        with self._lock:
            # What it has sent still counts.
            self._changed.wait_for(lambda: self._received, 2.0)
            self.dropped += len(self._waiting)
            self._waiting.clear()

    # ---- threads

    def _send(self, process: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), pipe:
            while (message := self._outgoing.get()) is not None:
                _write(pipe, message)

    def _receive(self, process: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
        try:
            with pipe:
                while not self._closed:
                    self._take(_read(pipe))
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            pass
        except Exception:
            _LOG.exception("reading from the observer failed")
        if not (self._closed or self._closing):
            self._lose(process)
        with self._lock:
            self._received = True
            self._changed.notify_all()

    def _take(self, message: Any) -> None:
        kind, *content = message
        if kind == "analysis":
            self._deliver.analysis(content[1])
        elif kind == "picture":
            self._deliver.picture(*content)
        elif kind == "dropped_pictures":
            self._deliver.dropped_pictures(*content)
        elif kind == "note":
            self._deliver.note(*content)
        with self._lock:
            self._progress += 1
            if kind == "analysis":
                number, analysis = content
                self._waiting.pop(number, None)
                self._state.update(analysis.state)
            elif kind == "flushed":
                (self._flushed,) = content
            elif kind == "ready":
                self._ready = True
            elif kind == "failed":
                self.unfit = True
                why, details = content
                self._fail(f"the model can't be rebuilt in another process: {why}", details)
            elif kind == "closed":
                self._closed = True
            self._changed.notify_all()

    def _lose(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5.0)
        code = process.returncode
        how = "stopped answering"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        elif code is not None:
            how = f"ended with exit status {code}"
        with self._lock:
            if not self.lost:
                self.unfit = not self._ready
                when = "" if self._ready else " before it could analyse"
                self._fail(f"the observer's process {how}{when}", "")

    def _fail(self, what: str, details: str) -> None:
        count = len(self._waiting)
        self.lost = True
        self.dropped += count
        self._waiting.clear()
        snapshots = f"{count} snapshot{'s' * (count != 1)}"
        message = f"{what}; {snapshots} lost with it" if count else what
        self._deliver.fault(message, details, unfit=self.unfit)


def _started() -> subprocess.Popen[bytes]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER_PREFIXES)
    }
    # Beside a training, threads that wait for each other are slower than one.
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # It draws without a window, whatever the script shows.
    others = {**threads, "MPLBACKEND": "agg"}
    # Where it was closed at the start, its number may be that of another file by now.
    stderr = None if sys.__stderr__ is not None and is_open(2) else subprocess.DEVNULL
    with above_standard_streams():
        return subprocess.Popen(
            [sys.executable, "-I", "-c", _COMMAND, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            # What is meant for this process, such as Ctrl-C, is not meant for that one.
            start_new_session=True,
            env={**environment, **others},
        )


def _search_path() -> list[str]:
    found: list[str] = []
    for path in sys.path:
        with contextlib.suppress(OSError, TypeError):  # The working directory may be gone.
            found.append(os.path.abspath(path))
    return found


def _write(pipe: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def _travels(value: Any) -> bool:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return False
    return True


def _read(pipe: IO[bytes]) -> Any:
    header = pipe.read(8)
    if len(header) < 8:
        raise EOFError
    (size,) = struct.unpack("<Q", header)
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)


# ---- the other process


def in_observer() -> bool:
    """Tell if this process is an observer's, in which an imported module may train."""
    return _COMMAND in sys.orig_argv


def serve(parent: int) -> None:
    """Analyse what comes through standard input until it ends; the whole life of the process.

    Args:
        parent: Process id of the training process.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The training process gets these as well, and ends this one when it has what it needs.
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICE)
    # What anything prints must not get between the messages.
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _Server(sys.stdin.buffer, results, parent).run()
    # The threads that read and draw may be in the midst of something; nothing depends on it.
    results.flush()
    os._exit(0)


class _Notes(logging.Handler):
    """Sends what the other process logs to the one that trains."""

    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Send the message; of an error its first and last lines."""
        message = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            message += f": {one_line(record.exc_info[1])}"
        self._tell("note", message)


class _Server:
    """The other process: reads on one thread, analyses on the main one, draws on a third."""

    def __init__(self, source: IO[bytes], results: IO[bytes], parent: int) -> None:
        self._source, self._results, self._parent = source, results, parent
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self) -> None:
        """Serve until the end of the run, or until the training process is gone."""
        threading.Thread(
            target=self._watch_parent, name="ncp_callbacks parent", daemon=True
        ).start()
        start: Start = _read(self._source)
        threading.Thread(target=self._read_all, name="ncp_callbacks inbox", daemon=True).start()
        try:
            observer = self._observer(start)
        except Exception as error:
            self._tell("failed", one_line(error), traceback.format_exc())
            return
        self._tell("ready")
        _LOG.addHandler(_Notes(self._tell))
        _LOG.propagate = False
        renderer = Renderer(self._send_picture, timeout=start.picture_seconds)
        dropped = 0
        while (message := self._inbox.get()) != "close":
            kind, *content = message
            if kind == "request":
                number, request = content
                analysis = observer.analyse(
                    request, reached=lambda name: self._tell("running", name)
                )
                analysis.state = observer.state()
                figures = [r for r in analysis.records if isinstance(r, Figure)]
                analysis.records = [r for r in analysis.records if not isinstance(r, Figure)]
                self._send_analysis(number, analysis)
                renderer.submit(analysis.step, analysis.wall_time, figures)
                if renderer.dropped + renderer.failed != dropped:
                    dropped = renderer.dropped + renderer.failed
                    self._tell("dropped_pictures", dropped)
            elif kind == "draw":
                renderer.submit(*content)
            elif kind == "flush":
                renderer.flush()
                self._tell("flushed", *content)
            else:
                observer.load_state(*content)
        renderer.close()
        self._tell("dropped_pictures", renderer.dropped + renderer.failed)
        self._tell("closed")

    def _observer(self, start: Start) -> Observer:
        import mlx.core as mx

        from ..model import ModelCopy
        from .snapshot import SnapshotLoader

        if start.device is not None:
            mx.set_default_device(mx.cpu if start.device == "cpu" else mx.gpu)
        copy = ModelCopy()
        SnapshotLoader(copy).load(start.snapshot)
        held_out, callbacks = copy.extra
        observer = Observer(copy, held_out, callbacks, start.settings)
        observer.memory_per_sequence = start.memory_per_sequence
        observer.load_state(start.state)
        return observer

    def _send_analysis(self, number: int, analysis: Analysis) -> None:
        try:
            self._tell("analysis", number, analysis)
        except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
            # Something of a class that only this process knows costs itself and nothing else.
            lost = [record.tag for record in analysis.records if not _travels(record)]
            lost += [f"the state of {n}" for n, v in analysis.state.items() if not _travels(v)]
            analysis.records = [record for record in analysis.records if _travels(record)]
            analysis.state = {n: v for n, v in analysis.state.items() if _travels(v)}
            analysis.notes.append(
                f"{', '.join(lost)} can't be sent from the observer's process: {one_line(error)}. "
                "Use numbers, strings, arrays, lists and dicts there, or pass background=False"
            )
            self._tell("analysis", number, analysis)

    def _send_picture(self, step: int, wall_time: float, picture: Picture) -> None:
        self._tell("picture", step, wall_time, picture)

    def _tell(self, kind: str, *content: Any) -> None:
        with self._lock:
            try:
                _write(self._results, (kind, *content))
            except BrokenPipeError:
                os._exit(0)

    def _read_all(self) -> None:
        try:
            while True:
                message = _read(self._source)
                self._inbox.put(message)
                if message == "close":
                    return
        except (OSError, EOFError):
            os._exit(0)  # the training process is gone: there is nobody to work for
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _watch_parent(self) -> None:
        # A pipe doesn't end while a fork of the training process holds it, too.
        while os.getppid() == self._parent:
            time.sleep(1.0)
        os._exit(0)
