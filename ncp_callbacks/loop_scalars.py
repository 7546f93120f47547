"""Read the numbers that a training loop passes, such as ``loss=loss``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .records import Record, Scalar, check_tag
from .signal_handlers import raised_by_signal_handler

__all__ = ["loop_scalars"]


def loop_scalars(
    values: Mapping[str, Any], report: Callable[..., None], *, raise_errors: bool
) -> list[Record]:
    """Return scalar records of Python's, numpy's or MLX's numbers.

    Values that are no numbers and tags that are no names are reported and skipped. Values that are
    not finite are reported and logged.

    Args:
        values: Numbers by tag.
        report: Called with a message, and with ``topic=`` for what is reported once.
        raise_errors: Raise instead of reporting what is skipped.
    """
    records: list[Record] = []
    for tag, value in values.items():
        try:
            check_tag(tag)
        except (TypeError, ValueError) as error:
            if raise_errors:
                raise
            report(f"a number is not logged: {error}", topic=f"no tag: {tag!r}")
            continue
        try:
            number = float(value.item() if hasattr(value, "item") else value)
            record = Scalar(tag, number)
        except Exception as error:
            if raise_errors or raised_by_signal_handler(error):
                raise
            shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
            report(
                f"{tag} is a {type(value).__name__}{shape} and not logged; pass a number "
                f"({type(error).__name__}: {error})",
                topic=f"no number: {tag}",
            )
            continue
        if not math.isfinite(number):
            report(f"{tag} is {number}; it is logged as it is")
        records.append(record)
    return records
