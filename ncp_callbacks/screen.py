"""Decide where TensorBoard shows the records of callbacks, and under which tag.

TensorBoard sorts groups of cards by name, opens the first two, and a group is what comes before the
first slash of a tag. The groups of callbacks, such as ``attribution``, would come before ``train``
and ``val``. So the event file has the tags of callbacks behind a prefix::

    headline/_findings/overview        a picture that is placed first
    headline/attribution/time_share    a number that its callback places first
    train/loss, val/loss               the training loop's own numbers, as they are
    xai_attribution/entropy            all other cards of callbacks

Everywhere else a tag is what the callback calls it: in records, in comparisons of runs, in the
guide. :func:`~ncp_callbacks.runs.read_run` takes the prefix away again.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from .records import Place

__all__ = [
    "ARRAY_PLUGIN",
    "BEHIND",
    "CI_ARRAYS",
    "DATA_PLUGIN",
    "FINGERPRINT",
    "FORMAT",
    "HEADLINE",
    "MAX_CARDS",
    "MAX_TAG",
    "SCALAR_ARRAYS",
    "VALIDATION",
    "Screen",
    "clean_tag",
    "plain_tag",
]

# Names of the plugins whose summaries are arrays, and documents such as findings.
ARRAY_PLUGIN, DATA_PLUGIN = "ncp_callbacks", "ncp_callbacks_data"
FORMAT = 1
"""Version of the descriptions of arrays; the meaning of a kind never changes within a version."""
# Prefixes of the arrays that hold numbers without a card, and confidence intervals.
SCALAR_ARRAYS, CI_ARRAYS = "_ncp/scalar/", "_ncp/ci/"
FINGERPRINT = "_ncp/fingerprint"  # The document that tells what a run was analysed on.
# Tags of the loop's numbers that are measured on other data than it trains on.
VALIDATION = re.compile(r"(val|valid|validation|dev|test|eval)(?=[/_]|$)")
HEADLINE = "headline/"
FIRST = "headline/_"  # An underscore sorts before letters.
BEHIND = "xai_"  # Of explainable AI; it sorts behind "val" and most other names.
MAX_CARDS = 10  # Of numbers in a group: a page of Time Series has 12, two are for pictures.
MAX_TAG = 35  # Characters of a tag that a card shows; it cuts longer ones.
_MAX_GROUP = 24


class Screen:
    """Give the tags of a log their places.

    Args:
        callbacks: Names of the callbacks. The groups of their tags begin with these.
    """

    def __init__(self, callbacks: Collection[str] = ()) -> None:
        self._callbacks = frozenset(callbacks)
        self._nonzero: set[str] = set()
        self._cards: dict[str, set[str]] = {}
        # By tag and place; and the tag by what is shown, so that no two are shown as one.
        self._shown: dict[tuple[str, str], str] = {}
        self._owner: dict[str, str] = {}

    def tag(self, tag: str, place: Place = "group") -> str:
        """Return the tag that TensorBoard shows.

        Args:
            tag: Of a record, clean.
            place: Its place.
        """
        if place == "headline":
            return self._placed(tag, HEADLINE)
        return self._placed(tag, BEHIND) if self._is_of_callback(tag) else tag

    def picture(self, tag: str, place: Place = "group") -> str:
        """Return the tag of a picture: in the headline group, pictures come before numbers."""
        return self._placed(tag, FIRST) if place == "headline" else self.tag(tag)

    def scalar(self, tag: str, place: Place, value: float) -> str | None:
        """Return the tag of the card of a number; None for a number without a card.

        A group of callbacks has at most 10 cards of numbers; those that come later have none.
        """
        if place == "nonzero":
            # A card that has appeared stays, or its last value would be an old one.
            if value != 0:
                self._nonzero.add(tag)
            place = "group" if tag in self._nonzero else "data"
        if place == "data":
            return None
        shown = self.tag(tag, place)
        if shown == tag:
            return tag
        cards = self._cards.setdefault(shown.split("/")[0], set())
        if len(cards) < MAX_CARDS:
            cards.add(shown)
        return shown if shown in cards else None

    def _placed(self, tag: str, prefix: str) -> str:
        """Return the tag behind a prefix, cut to what a card shows, and different from others."""
        key = (tag, prefix)
        if key not in self._shown:
            shown = _cut(prefix + tag, "")
            number = 2
            while self._owner.setdefault(shown, tag) != tag:
                shown, number = _cut(prefix + tag, f"_{number}"), number + 1
            self._shown[key] = shown
        return self._shown[key]

    def _is_of_callback(self, tag: str) -> bool:
        group = tag.split("/")[0]
        return any(group == name or group.startswith(f"{name}_") for name in self._callbacks)


def clean_tag(tag: str) -> str:
    """Return a tag as TensorBoard shows it, which knows letters, digits and ``_ - . /`` only."""
    return re.sub(r"[^-/\w.]", "_", tag).lstrip("/") or "_"


def plain_tag(shown: str, called: str) -> str:
    """Return the tag of a record from the tag in the event file.

    Args:
        shown: The tag in the event file.
        called: Its display name there; "" for none.
    """
    return called if called and shown.startswith((HEADLINE, BEHIND)) else shown


def _cut(tag: str, end: str) -> str:
    """Return a tag of at most 35 characters, cut in the middle of its name, with an end."""
    tag += end
    if len(tag) <= MAX_TAG:
        return tag
    group, _, name = tag.partition("/")
    group = group[:_MAX_GROUP]  # Of a longer one, too little of the name would be left.
    room = MAX_TAG - len(group) - len("/..")
    head = room // 2
    return f"{group}/{name[:head]}..{name[len(name) - (room - head) :]}"
