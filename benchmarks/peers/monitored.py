"""A training with a monitor, and the CPU time of its snapshots.

    python -m peers.monitored --model=CfC --size=S --sequences=16 --background=1 --log=/tmp/log
    python -m peers.monitored ... --package=/a/checkout/of/another/version

Run like this it is a worker of :mod:`peers.protocol`, so that versions of the package can be
compared.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Before the package is imported, and found in place of the one that is installed.
    for argument in sys.argv:
        if argument.startswith("--package="):
            sys.path.insert(0, argument.removeprefix("--package="))

from processes import cpu_seconds

import ncp_callbacks as ncp
from peers.cases import SIZES
from peers.protocol import serve
from peers.training import Training

__all__ = ["PERIOD", "Monitored", "timed"]

# Seconds without a picture, after which the first snapshot has drawn all, and that one may take.
PERIOD = 8
"""Snapshots after which all parts of a set have come once: features are removed at the first."""
# The first has all pictures, and the others of a period have those of the second.
_KNOWN = 2
_QUIET, _LIMIT = 2.0, 60.0


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class _Writer(ncp.TensorBoardWriter):
    """Count the pictures that come back from the observer's process, and keep its times."""

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.pictures = 0
        self.seconds: dict[str, float] = {}
        self._came = threading.Condition()

    def write_at(self, wall_time: float, step: int, records: Sequence[Any]) -> None:
        super().write_at(wall_time, step, records)
        with self._came:
            for record in records:
                # An earlier version may have no such class, nor this method.
                self.pictures += type(record).__name__ == "Picture"
                group, _, name = getattr(record, "tag", "").rpartition("/")
                if group == "monitor/seconds":
                    self.seconds[name] = record.value
                if group == "monitor/pass_seconds":
                    kind = "pass" if name == "shared" else f"pass: {name}"
                    self.seconds[kind] = record.value
            self._came.notify_all()

    def wait(self, pictures: int) -> None:
        """Wait until so many pictures have come.

        Raises:
            RuntimeError: If they don't come.
        """
        with self._came:
            if not self._came.wait_for(lambda: self.pictures >= pictures, _LIMIT):
                raise RuntimeError(f"{pictures} pictures were expected, {self.pictures} came")

    def wait_until_quiet(self) -> None:
        """Wait until no picture comes any more."""
        with self._came:
            while self._came.wait(_QUIET):
                pass


class Monitored:
    """A monitor that takes a snapshot for each call; a context manager.

    Args:
        training: What it monitors.
        count: How many sequences of the batch are held out.
        log: Where it writes.
        options: More arguments of the monitor.

    Attributes:
        entering: Seconds that entering it took.
    """

    def __init__(self, training: Training, count: int, log: Path, **options: Any) -> None:
        self._writer = _Writer(log)
        held_out = ncp.HeldOutBatch(*(array[:count] for array in training.inputs))
        self.monitor = ncp.Monitor(
            training.model, held_out, writer=self._writer, every=1, verbose=False, **options
        )
        self.entering = timed(self.monitor.__enter__)
        self._step = 0
        # Pictures of the first snapshots.
        self._pictures: list[int] = []

    def __enter__(self) -> Monitored:
        for _ in range(_KNOWN):
            self.snapshot()
            self.wait()
        return self

    def snapshot(self) -> float:
        """Take one; return the seconds for which the loop waits."""
        self._step += 1
        return timed(lambda: self.monitor.on_step_end(self._step))

    def wait(self) -> float:
        """Wait until everything that came of the last snapshot is on disk; return the seconds."""
        return timed(self._wait)

    def _wait(self) -> None:
        if getattr(self.monitor, "in_background", False):
            self.monitor.state_dict()  # waits for the analysis
            if len(self._pictures) < _KNOWN:
                self._writer.wait_until_quiet()
                self._pictures.append(self._writer.pictures - sum(self._pictures))
            of_step = (
                self._pictures[min(i % PERIOD, 1, len(self._pictures) - 1)]
                for i in range(self._step)
            )
            self._writer.wait(sum(of_step))
        self._writer.flush()

    @property
    def seconds(self) -> dict[str, float]:
        """Time that the last analysis took for each callback."""
        return dict(self._writer.seconds)

    def __exit__(self, *_: object) -> None:
        self.monitor.__exit__(None, None, None)
        self._writer.close()
        tally = self._writer.tally
        if tally.dropped_figures or tally.dropped_records or tally.failed_records:
            raise RuntimeError("not everything was written, so these times mean nothing")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--background", type=int, help="0 or 1; without, as the version does")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--package", help="a folder with another version of the package")
    args = parser.parse_args()
    logging.getLogger("ncp_callbacks").setLevel(logging.ERROR)
    training = Training(args.model, SIZES[args.size])
    options = {} if args.background is None else {"background": bool(args.background)}

    with contextlib.ExitStack() as stack:
        monitored = stack.enter_context(
            Monitored(training, args.sequences, args.log / "run", **options)
        )

        def snapshots(count: int) -> dict[str, Any]:
            """Return CPU seconds of a training step, and of a snapshot until it is on disk."""
            total = step = 0.0
            for _ in range(count):
                start = cpu_seconds()
                training.step()
                before = cpu_seconds()
                monitored.snapshot()
                monitored.wait()
                total += cpu_seconds() - before
                step += before - start
            return {"step": step / count, "snapshot": total / count}

        serve({"snapshots": snapshots}, {"ncp_callbacks": str(Path(ncp.__file__).parent)})


if __name__ == "__main__":
    main()
