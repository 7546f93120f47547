"""Check what users pass to a monitor, before training begins."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any

import mlx.nn as nn

from .callback import Callback
from .callbacks.held_out_score.callback import HeldOutScore
from .callbacks.sets import callback_set
from .held_out import HeldOutBatch
from .observation import Need
from .scheduling import as_whole
from .writers import as_directory, as_list, directory_of

__all__ = ["as_callbacks", "check_log", "check_model", "check_options"]


def check_model(model: Any, forward: Any, make_model: Any) -> None:
    """Check a model and the functions that go with it.

    Raises:
        TypeError: If one is of another kind.
    """
    if not isinstance(model, nn.Module):
        called = f": write {model.__name__}(...)" if isinstance(model, type) else ""
        raise TypeError(f"model is a {type(model).__name__}; pass an mlx.nn.Module{called}")
    if forward is not None and not callable(forward):
        raise TypeError(
            f"forward is a {type(forward).__name__}; pass a callable "
            "(model, inputs, time_delta) -> outputs"
        )
    if make_model is not None and not callable(make_model):
        raise TypeError(
            f"make_model is a {type(make_model).__name__}; pass a function that builds a model"
        )


def check_options(
    *,
    chunk_size: Any = None,
    max_overhead: Any = None,
    observer_device: Any = None,
    run_config: Any = None,
    on_error: Any = "disable",
) -> None:
    """Check options of a monitor or a replay.

    Raises:
        TypeError, ValueError: If one has the wrong type or value.
    """
    if on_error not in ("disable", "raise"):
        raise ValueError(f"on_error={on_error!r}: pass 'disable' or 'raise'")
    if observer_device not in (None, "cpu", "gpu"):
        raise ValueError(f"observer_device={observer_device!r}: pass 'cpu', 'gpu' or None")
    if run_config is not None and not isinstance(run_config, Mapping):
        raise TypeError(f"run_config is a {type(run_config).__name__}; pass a mapping")
    if max_overhead is not None and not 0 < max_overhead <= 1:
        raise ValueError(
            f"max_overhead={max_overhead!r}: pass a share of the wall time, such as 0.02, or "
            "None for no bound"
        )
    if chunk_size is not None and (as_whole(chunk_size) or 0) < 1:
        raise ValueError(f"chunk_size={chunk_size!r}: pass 1 or more sequences, or None")


def check_log(log_dir: Any, writer: Any) -> None:
    """Check that records have a place to go, and TensorBoard one log.

    Raises:
        TypeError: If there is none, or two logs.
        ValueError: If the directory is none of this machine.
    """
    if log_dir is not None:
        as_directory(log_dir)
    writers = as_list(writer)
    second = next((w for w in writers if directory_of([w]) is not None), None)
    if log_dir is None and not writers:
        raise TypeError(
            "neither log_dir= nor writer= was passed: pass log_dir='runs/name', a directory for "
            "this run's log, or writer=, an object that writes records"
        )
    if log_dir is not None and second is not None:
        raise TypeError(
            f"pass either log_dir=, here {os.fspath(log_dir)!r}, or the "
            f"{type(second).__name__} of {directory_of([second])!r}: both were passed, and "
            "TensorBoard would show two runs"
        )


def as_callbacks(callbacks: Iterable[Callback] | str | None, held_out: Any) -> list[Callback]:
    """Return the callbacks as a list.

    Args:
        callbacks: The callbacks, the name of a set, or None for the standard set. One for loss and
            accuracy is added if the batch has targets.
        held_out: The held-out batch, which is checked later. A set draws frames that are pictures.

    Raises:
        TypeError, ValueError: If they are no callbacks, or two have one name.
    """
    if callbacks is None or isinstance(callbacks, str):
        pictures = isinstance(held_out, HeldOutBatch) and held_out.picture_shape is not None
        name = "standard" if callbacks is None else callbacks
        return _with_score(callback_set(name, pictures=pictures), held_out)
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        raise TypeError(
            f"callbacks={callbacks!r}: pass a list of callbacks, the name of a set, or None"
        )
    listed = list(callbacks)
    for callback in listed:
        if isinstance(callback, type):
            raise TypeError(f"callbacks has a class, not an object: write {callback.__name__}()")
        if not isinstance(callback, Callback):
            raise TypeError(
                f"callbacks has a {type(callback).__name__}; pass objects of subclasses of "
                "ncp_callbacks.Callback"
            )
        _check_settings(callback)
    names = [c.name for c in listed]
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise ValueError(
            f"two callbacks are called {doubled[0]!r}, so their tags would mix: pass "
            f"name='{doubled[0]}_2' to one of them"
        )
    return _with_score(listed, held_out)


def _with_score(callbacks: list[Callback], held_out: Any) -> list[Callback]:
    """Return the callbacks, and one for loss and accuracy where there are targets."""
    has_targets = isinstance(held_out, HeldOutBatch) and held_out.targets is not None
    known = any(isinstance(c, HeldOutScore) or c.name == "held_out" for c in callbacks)
    if not has_targets or known or not callbacks:
        return callbacks
    sizes = [callback.max_sequences for callback in callbacks]
    largest = None if None in sizes else max(filter(None, sizes))
    return [*callbacks, HeldOutScore(max_sequences=largest)]


def _check_settings(callback: Callback) -> None:
    """Check what a user's class may have got wrong, before it fails in the midst of training."""
    needs: Any = callback.needs
    if not isinstance(needs, Iterable) or not all(isinstance(need, Need) for need in needs):
        raise TypeError(
            f"{callback!r}.needs is {needs!r}; write needs = frozenset({{Need.STATES, ...}})"
        )
    if not isinstance(needs, frozenset):
        callback.needs = frozenset(needs)
    every_nth: Any = callback.every_nth
    if not hasattr(every_nth, "__index__") or operator.index(every_nth) < 1:
        raise ValueError(f"{callback!r}.every_nth is {every_nth!r}; set 1 or more")
