"""Notice tags that both the training loop and a callback log, which would be one curve."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .records import Record

__all__ = ["TagOwners"]

_MAX_TAGS = 2000
# The monitor's own groups. No callback has them, and their tags are not rehearsed.
_OURS = ("monitor/", "findings/", "_ncp/")


class TagOwners:
    """Remember who logs which tag, and report a tag that a second one logs.

    Args:
        report: Called with a message, and with ``topic=`` for what is reported once.
    """

    def __init__(self, report: Callable[..., None]) -> None:
        self._report = report
        self._owners: dict[str, str] = {}

    def add(self, owner: str, records: Iterable[Record]) -> None:
        """Take the tags of records.

        Args:
            owner: Who logs them, as in "a callback".
            records: What is logged.
        """
        for record in records:
            tag = record.tag
            first = self._owners.get(tag)
            if first is None:
                if len(self._owners) >= _MAX_TAGS:
                    continue
                ours = owner == "the training loop" and tag.startswith(_OURS)
                self._owners[tag] = first = "the monitor" if ours else owner
            if first != owner:
                self._report(
                    f"the tag {tag!r} is logged by {first} and by {owner}, and TensorBoard shows "
                    "both as one curve: rename that of the training loop, or pass name= to the "
                    "callback",
                    topic=f"tag {tag}",
                )
