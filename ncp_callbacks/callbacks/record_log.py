"""Collect the records of a callback, with scalars that a table describes."""

from __future__ import annotations

from collections.abc import Mapping

from ..callback import scalar_with_ci
from ..records import Note, Place, Record
from ..stats import Estimate

__all__ = ["RecordLog"]


class RecordLog:
    """Collect the records of one group of tags.

    Args:
        group: First part of the tags.
        descriptions: Descriptions of the scalars, by name, with ``{placeholders}``.
        places: Places of the scalars by name, see :class:`.Scalar`; ``"data"`` for all others.
        **words: What stands for the placeholders that many descriptions share.

    Attributes:
        group: First part of the tags.
        records: The records collected so far.
        estimates: Estimates of the scalars that have one, by name.
        words: What stands for the placeholders that many descriptions share.
    """

    def __init__(
        self,
        group: str,
        descriptions: Mapping[str, str],
        *,
        places: Mapping[str, Place] | None = None,
        **words: str,
    ) -> None:
        self.group = group
        self.records: list[Record | Note] = []
        self.estimates: dict[str, Estimate] = {}
        self.words = words
        self._descriptions, self._places = descriptions, places or {}

    def scalar(
        self,
        name: str,
        value: float,
        estimate: Estimate | None = None,
        *,
        entry: str | None = None,
        suffix: str = "",
        place: Place | None = None,
        **words: object,
    ) -> None:
        """Add a scalar.

        Args:
            name: Second part of the tag.
            value: The number.
            estimate: The number as an estimate over sequences; None for no CI.
            entry: Its name in the table of descriptions; None for ``name``.
            suffix: End of the tag that is not part of the name, such as the name of a target.
            place: Its place; None: that of ``places``.
            **words: What stands for the placeholders of the description.
        """
        if estimate is not None:
            self.estimates[name] = estimate
        description = self._descriptions[entry or name].format(**{**self.words, **words})
        place = self._places.get(name, "data") if place is None else place
        self.records.append(
            scalar_with_ci(
                f"{self.group}/{name}{suffix}", value, estimate, description, place=place
            )
        )

    def note(self, message: str) -> None:
        """Add a note that begins with the group."""
        self.records.append(Note(f"{self.group}: {message}"))
