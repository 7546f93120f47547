"""Name the runs of a sweep by their hyper-parameters.

    for config in sweep(model=["cfc", "gru"], units=[8, 32], seed=range(5)):
        train(config, log_dir=named("runs/sweep/{model}-u{units}-s{seed}", config))

Nothing is launched here. Each log holds the hyper-parameters of its run, so that a comparison finds
together what belongs together, however and wherever the runs were made.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import string
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from .writers.run_config import RunConfig

__all__ = ["named", "sweep"]

PathT = TypeVar("PathT")


def sweep(**values: Any) -> list[dict[str, Any]]:
    """Return the hyper-parameters of all runs of a sweep: every combination of values.

    ::

        for config in ncp.sweep(model=["cfc", "gru"], units=32, seed=range(5)):
            with ncp.Monitor(..., log_dir="runs/{model}-s{seed}", run_config=config) as monitor:

    A job array takes one of them: ``ncp.sweep(...)[int(os.environ["SLURM_ARRAY_TASK_ID"])]``.

    Args:
        values: Of each hyper-parameter one value or several; the last one varies fastest. A string
            or a mapping is one value.

    Returns:
        A dict for each run, to be passed as ``run_config=``.

    Raises:
        ValueError: A hyper-parameter has no value, or one twice.
    """
    several = {name: _several(of_one) for name, of_one in values.items()}
    for name, of_one in several.items():
        texts = [repr(value) for value in of_one]
        if not texts:
            raise ValueError(f"{name} has no value: pass one or more, as in {name}=[1, 2]")
        if len(set(texts)) < len(texts):
            twice = next(text for text in texts if texts.count(text) > 1)
            raise ValueError(f"{name} has the value {twice} twice: pass it once")
    return [
        dict(zip(several, chosen, strict=True)) for chosen in itertools.product(*several.values())
    ]


def _several(values: Any) -> list[Any]:
    one = isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable)
    return [values] if one else list(values)


def named(log_dir: PathT, run_config: Mapping[str, Any] | None) -> PathT | str:
    """Return a directory with names in braces replaced by the values of hyper-parameters.

    In a value, what has a meaning in paths becomes a hyphen. Doubled braces stand for themselves.

    Args:
        log_dir: Such as ``"runs/{model}-lr{lr:g}"``, with a format where that is wanted; anything
            without braces is returned as it is.
        run_config: The hyper-parameters. Those of nested mappings are named with dots.

    Raises:
        ValueError: A name is unknown, or its value can't be a part of a path.
    """
    path: Any = log_dir
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not {"{", "}"} & set(text):
        return log_dir
    known = RunConfig.of(run_config or {}).values
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(
            f"log_dir={text!r}: {error}. Pass names in braces, as in 'runs/{{model}}-s{{seed}}', "
            "and double those braces that stand for themselves"
        ) from error
    return "".join(
        before + ("" if name is None else _value(text, name, form or "", known))
        for before, name, form, _ in parts
    )


def _value(text: str, name: str, form: str, known: Mapping[str, Any]) -> str:
    where = f"log_dir={text!r} has {{{name}}}"
    if not known:
        raise ValueError(
            f"{where}, and there are no hyper-parameters: pass run_config={{{name!r}: ...}}, or "
            "double the braces"
        )
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, cutoff=0.6)
        guess = f"did you mean {{{near[0]}}}? " if near else ""
        raise ValueError(f"{where}, which run_config lacks: {guess}It has {', '.join(known)}")
    try:
        value = format(known[name], form)
    except ValueError as error:
        raise ValueError(f"{where[:-1]}:{form}}}: {error}. Pass another format") from error
    # Neither a separator, nor "..", nor a hidden folder, nor what a shell would take for its own.
    safe = re.sub(r"[^\w.+=,@-]+", "-", value).lstrip(".")
    if not re.search(r"\w", safe):
        raise ValueError(f"{where}, whose value {value!r} names no folder: pass one with letters")
    return safe
