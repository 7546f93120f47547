"""Ask the analysis of one repetition questions that have one of a few answers."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

__all__ = ["answers", "feature_shares"]

Numbers = Mapping[str, float]
Maps = Mapping[str, npt.NDArray[np.floating]]

_SHARE = re.compile(r"(?P<group>[^/]+)_share/(?P<feature>.+)")
# Of more features the order is never twice the same: only the first are asked for.
_MAX_ORDERED = 3
# The last part of the time steps, of which it is asked if most of the map lies there.
_LAST = 0.25


def feature_shares(numbers: Numbers) -> dict[str, dict[str, float]]:
    """Return the shares of features by group, from numbers tagged ``<group>_share/<feature>``.

    Groups with a share that is not finite are skipped, and so are those of a single feature.
    """
    found: dict[str, dict[str, float]] = {}
    for tag, value in numbers.items():
        match = _SHARE.fullmatch(tag)
        if match:
            found.setdefault(match["group"], {})[match["feature"]] = value
    return {
        group: shares
        for group, shares in found.items()
        if len(shares) > 1 and np.isfinite(list(shares.values())).all()
    }


def answers(numbers: Numbers, maps: Maps) -> dict[str, str]:
    """Return the answer to each question that the numbers of one repetition can answer.

    Args:
        numbers: Numbers by tag.
        maps: Logged arrays by tag; ``_ncp/<group>_strength`` are maps ``(T, F)``.
    """
    found: dict[str, str] = {}
    for group, shares in feature_shares(numbers).items():
        # Equal shares are in the order of their names, so that a tie is no disagreement.
        order = sorted(shares, key=lambda feature: (-shares[feature], feature))
        found[f"{group}: feature with the largest share"] = order[0]
        first = order[:_MAX_ORDERED]
        which = "order of the features" if len(first) == len(order) else "first three features"
        found[f"{group}: {which}"] = " > ".join(first)
    for tag, value in numbers.items():
        group, _, name = tag.partition("/")
        if name == "time_share" and np.isfinite(value):
            found[f"{group}: elapsed times carry more than inputs"] = _yes(value > 0.5)
        if name == "stability_exponent" and np.isfinite(value):
            found[f"{group}: neighbouring states approach each other"] = _yes(value < 0)
    for tag, values in maps.items():
        name = tag.removeprefix("_ncp/").removesuffix("_strength")
        if tag == f"_ncp/{name}_strength" and values.ndim == 2 and name in _groups(numbers):
            by_step = np.nansum(np.asarray(values, np.float64), axis=1)
            if by_step.sum() > 0 and len(by_step) >= 4:
                last = by_step[-max(1, round(_LAST * len(by_step))) :].sum() / by_step.sum()
                question = "more than half lies in the last quarter of the time steps"
                found[f"{name}: {question}"] = _yes(last > 0.5)
    return found


def _groups(numbers: Numbers) -> set[str]:
    return {m["group"] for m in map(_SHARE.fullmatch, numbers) if m}


def _yes(is_so: bool | np.bool_) -> str:
    return "yes" if is_so else "no"
