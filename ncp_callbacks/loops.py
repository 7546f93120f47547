"""Attach a monitor to a loop by one line: an iterator over batches, or a step function.

    for step, batch in monitor.steps(batches):
        monitor.on_step_end(step, loss=train_step(batch))

    train_step = monitor.attach(train_step)

Both start the monitor where that is not done yet.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import mlx.core as mx

__all__ = ["Attachable", "attached", "iterate"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Attachable(Protocol):
    """The part of a monitor that is needed here."""

    @property
    def state(self) -> str:
        """Return "not started", "open" or "closed"."""

    @property
    def reported_steps(self) -> int:
        """Return how many steps the loop has reported."""

    @property
    def last_step(self) -> int | None:
        """Return the last step that the loop reported, or that the run is resumed from."""

    def start(self) -> Any:
        """Begin the run."""

    def end(self, *, finish: bool) -> None:
        """End the run, with last snapshots if it is to be finished."""

    def on_step_end(self, step: int, **scalars: Any) -> None:
        """Take the end of a step."""

    def report(self, message: str, *, topic: str | None = None) -> None:
        """Tell the user once."""


# ---- batches


def iterate(
    monitor: Attachable,
    batches: Iterable[T] | Callable[[], Iterable[T]],
    *,
    epochs: int = 1,
    first: int | None = None,
    bar: bool = False,
) -> Iterator[tuple[int, T]]:
    """Return an iterator over ``(step, batch)`` that reports each step to the monitor.

    Args:
        monitor: It is started with the first batch, and then ended with the last one, unless it
            was started before.
        batches: As for ``Monitor.steps``.
        epochs: How often to go through the batches.
        first: Number of the first step; None: the one after the monitor's last step.
        bar: Show a progress bar.

    Raises:
        TypeError, ValueError: If an argument is none of these.
    """
    make = batches if not hasattr(batches, "__iter__") and callable(batches) else None
    if make is None and not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise TypeError(
            f"batches is a {type(batches).__name__}: pass an iterable of batches, or a function "
            "that returns one for each epoch"
        )
    if isinstance(epochs, bool) or not isinstance(epochs, numbers.Integral) or epochs < 1:
        raise ValueError(f"epochs={epochs!r}: pass 1 or more")
    whole = cast("Iterable[T]", batches)
    if make is None and epochs > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"epochs={epochs}, but batches is an iterator ({type(batches).__name__}), which ends "
            "after the first epoch: pass a list, or a function that returns a new iterator, such "
            "as steps(lambda: loader(...), epochs=...)"
        )
    _check_first(first)
    if monitor.state == "closed":
        raise RuntimeError(
            "steps() was called on a monitor that is closed. To go through the batches several "
            "times, pass epochs=, or enter the monitor by `with` or start() around all of them"
        )
    return _steps(monitor, make or (lambda: whole), epochs=int(epochs), first=first, bar=bar)


def _steps(
    monitor: Attachable,
    make: Callable[[], Iterable[T]],
    *,
    epochs: int,
    first: int | None,
    bar: bool,
) -> Iterator[tuple[int, T]]:
    owns = monitor.state == "not started"
    if owns:
        monitor.start()
    finish = False
    try:
        step = (monitor.last_step or 0) + 1 if first is None else int(first)
        with _bar(monitor, make, epochs, shown=bar) as advance:
            for _ in range(epochs):
                for batch in make():
                    before = monitor.reported_steps
                    yield step, batch
                    # A body that has a loss to log has reported the step itself.
                    if monitor.reported_steps == before and monitor.state == "open":
                        monitor.on_step_end(step)
                    advance()
                    step += 1
        finish = True
    except GeneratorExit:
        # The loop was left by `break`, which is a normal end; or by an error, which goes on.
        finish = True
        raise
    finally:
        if owns:
            monitor.end(finish=finish)


@contextlib.contextmanager
def _bar(
    monitor: Attachable, make: Callable[[], Any], epochs: int, *, shown: bool
) -> Iterator[Callable[[], object]]:
    """Show a progress bar, if ``tqdm`` is installed, and yield what advances it by a step."""
    if not shown:
        yield lambda: None
        return
    try:
        tqdm = importlib.import_module("tqdm.auto").tqdm
    except ImportError:
        monitor.report("bar=True shows nothing: tqdm is not installed. Run pip install tqdm")
        yield lambda: None
        return
    size = getattr(make(), "__len__", None)
    with tqdm(total=epochs * size() if size is not None else None, unit="step") as bar:
        yield bar.update


# ---- a step function


def attached(
    monitor: Attachable,
    function: F,
    names: Sequence[str],
    parameters: Callable[[], Any],
    *,
    first: int | None = None,
) -> F:
    """Return a function that calls ``function`` and then reports a step with its loss.

    Args:
        monitor: It is started by the first call, unless it was started before.
        function: Makes one training step; may be asynchronous.
        names: Names of the numbers that it returns.
        parameters: Returns arrays of the model, to find out if they have values.
        first: Number of the step of the first call; None: the one after the monitor's last step.

    Raises:
        TypeError: ``function`` is no function of a step, or ``first`` no whole number.
    """
    _check_first(first)
    called = getattr(function, "__wrapped__", function)
    if not callable(function):
        raise TypeError(
            f"attach() got a {type(function).__name__}: pass the function that makes one training "
            "step"
        )
    if isinstance(names, str):
        one: object = names
        raise TypeError(f"names={one!r} is one string: pass a sequence, such as ['loss']")
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise TypeError(
            f"{_name(function)} is a generator, and calling it makes no step: attach the function "
            "of one step, or write `for step, batch in monitor.steps(batches)`"
        )

    following = first

    def before(arguments: Any) -> None:
        if monitor.state == "not started":
            _check_untraced(function, (arguments, parameters()))
            monitor.start()

    def after(result: Any) -> None:
        nonlocal following
        if monitor.state == "open":
            step = (monitor.last_step or 0) + 1 if following is None else int(following)
            following = None
            monitor.on_step_end(step, **_scalars(result, names))

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def step_of_coroutine(*arguments: Any, **keywords: Any) -> Any:
            before((arguments, keywords))
            result = await function(*arguments, **keywords)
            after(result)
            return result

        return cast("F", step_of_coroutine)

    # A compiled function has none of a function's attributes.
    @functools.wraps(function)
    def step(*arguments: Any, **keywords: Any) -> Any:
        before((arguments, keywords))
        result = function(*arguments, **keywords)
        after(result)
        return result

    return cast("F", step)


def _check_first(first: Any) -> None:
    if first is not None and (isinstance(first, bool) or not isinstance(first, numbers.Integral)):
        raise TypeError(f"first={first!r} is a {type(first).__name__}: pass a whole number")


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _check_untraced(function: Any, arrays: Any) -> None:
    """Raise if this runs while MLX traces a function, which it does once and then never again."""
    try:
        # Other leaves than arrays are ignored.
        mx.eval(arrays)
    except (ValueError, RuntimeError) as error:
        if "transformation" not in str(error):
            raise
        raise RuntimeError(
            f"{_name(function)} is attached inside of a function that mx.compile or another "
            "transformation traces, so that the monitor would learn of one step only: attach the "
            "compiled function, step = monitor.attach(mx.compile(step)), or put @monitor.attach "
            "above @mx.compile"
        ) from error


def _scalars(result: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the numbers that a step function returned, by name."""
    if isinstance(result, Mapping):
        # A step has its number already.
        named = {str(key): value for key, value in result.items() if _is_number(value)}
        return {name: named[name] for name in named if name not in ("step", "self")}
    values = result if isinstance(result, tuple | list) else (result,)
    return {n: v for n, v in zip(names, values, strict=False) if _is_number(v)}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, numbers.Real) or getattr(value, "size", None) == 1
