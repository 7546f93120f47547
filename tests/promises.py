"""The tags that the callbacks' docstrings promise, as patterns."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

import ncp_callbacks as ncp

STANDARD = (
    ncp.GradientAttribution,
    ncp.FeatureRemoval,
    ncp.TimeSensitivity,
    ncp.StateTransitions,
    ncp.StateSpace,
    ncp.BackboneActivations,
)
# Of the set "full", those that apply to the models of tests/test_callbacks.py.
FULL = (
    ncp.ParameterUpdates,
    ncp.UnitAblation,
    ncp.UnitMeanings,
    ncp.GradientReach,
    ncp.SamplingRate,
)
# The monitor adds it to others where there are targets.
ADDED = (ncp.HeldOutScore,)
# Promised with arguments that aren't the defaults.
OPTIONAL = {
    "attribution/agreement",
    "attribution/heatmap_class_<name>",
    "attribution/heatmap_worst",
    "time_delta/solver_error_x<scale>",
}
# Where the monitor's own tags begin, which no callback promises.
MONITORS = (
    "monitor/",
    "held_out/",
    "findings/",
    "_ncp/findings",
    "_ncp/fingerprint",
    "_ncp/run",
    "_ncp/held_out_confusion",
)
# What the monitor says of itself.
OWN = (
    "monitor/seconds/<callback>",
    "monitor/passes/<kind>",
    "monitor/pass_seconds/<kind>",
    "monitor/loop_seconds",
    "monitor/share",
)
_ROW = re.compile(r"^``(?P<tag>[^`]+)``\s+(?P<kind>image|scalar|histogram|array|text|points)\b")


def promised(callback: type[ncp.Callback]) -> dict[str, str]:
    """From tag, with its placeholders, to the kind of record."""
    rows = {}
    for line in (inspect.getdoc(callback) or "").splitlines():
        match = _ROW.match(line.strip())
        if match:
            rows[match["tag"]] = match["kind"]
    return rows


def plain(shown: str) -> str:
    """The tag of a record, of the tag that TensorBoard shows."""
    return re.sub(r"^(headline/_?|xai_)", "", shown)


def pattern(tag: str) -> re.Pattern[str]:
    """A tag with ``<placeholders>`` as a regular expression."""
    return re.compile("[^/]+".join(map(re.escape, re.split(r"<[a-z]+>", tag))) + r"\Z")


def told(notes: Sequence[str]) -> tuple[str, ...]:
    """Notes without the one that is there of every small batch, on its intervals."""
    return tuple(note for note in notes if "95 % CIs cover the true value less often" not in note)
