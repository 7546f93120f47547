"""What changed since the last look, told from what differs by chance."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..analysis.estimates import Estimate, changed_beyond_chance
from ..held_out import to_numpy
from ..observation import Observation
from ..records import Scalar
from .base import over

__all__ = ["Changes"]

# Numbers of the batch that are compared to tell whether it is the same.
_COMPARED = 4096


class Changes:
    """Numbers of one look beside those of the one before, of the same sequences.

    A curve that moves by less than its band may still have moved for sure: sequences differ more
    from each other than each does from itself.
    """

    def __init__(self) -> None:
        self._batch: dict[str, int] = {}
        self._before: dict[str, dict[str, Estimate]] = {}

    def state(self) -> dict[str, Any]:
        return {
            group: {
                "batch": self._batch[group],
                "numbers": {name: number.to_state() for name, number in numbers.items()},
            }
            for group, numbers in self._before.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` gave; nothing, as of callbacks that had none, is a start."""
        self._batch = {group: int(of["batch"]) for group, of in state.items()}
        self._before = {
            group: {name: Estimate.from_state(s) for name, s in of["numbers"].items()}
            for group, of in state.items()
        }

    def since(
        self,
        group: str,
        now: Mapping[str, Estimate],
        observation: Observation,
        headline: str | None = None,
        called: str | None = None,
    ) -> Iterator[Scalar]:
        """How many of the numbers changed beyond chance, and by how much one of them did.

        Nothing at the first look, and where other sequences were looked at before.

        Args:
            group: First part of the tags.
            now: The numbers of this look, by name.
            observation: What they are of.
            headline: The one whose change is logged.
            called: Its name in the tag of the change, if another one.
        """
        whole = len(observation.indices)
        # Without sequences that were left out, it can't be told which is which.
        now = {name: number for name, number in now.items() if number.sequences == whole}
        batch, known = _checksum(observation), self._batch.get(group)
        before = self._before.get(group, {}) if batch == known else {}
        self._batch[group], self._before[group] = batch, dict(now)
        both = {
            name: (before[name], number)
            for name, number in now.items()
            if name in before and before[name].sequences == whole
        }
        if whole < 2 or not both:
            return
        if headline in both:
            earlier, number = both[headline]
            change = number.change(earlier)
            if change is not None:
                what = "Relative change, 0.1 for 10 % more," if number.ratio else "Change"
                yield Scalar(
                    f"{group}/{called or headline}_change",
                    change.value,
                    f"{what} of {group}/{headline} since the last look, paired on the same "
                    f"sequences: beyond chance where its band leaves out 0{over(whole)}",
                    interval=(change.low, change.high),
                )
        yield Scalar(
            f"{group}/numbers_changed",
            sum(changed_beyond_chance(list(both.values()))),
            f"How many of the {len(both)} numbers of {group} that have intervals changed since the "
            "last look beyond chance: t tests paired on the same sequences, corrected for how many "
            "they are (Holm). Where nothing changes it is above 0 at 1 look in 20",
        )


def _checksum(observation: Observation) -> int:
    """Of which sequences are looked at."""
    found = zlib.crc32(np.ascontiguousarray(observation.indices).tobytes())
    held_out = observation.held_out
    # What tokens are embedded as changes while the model learns.
    inputs = to_numpy(held_out.inputs) if held_out.tokens else observation.inputs
    for array in (inputs, observation.time_delta):
        if array is not None:
            flat = array.reshape(-1)
            some = flat[:: max(1, flat.size // _COMPARED)]
            found = zlib.crc32(np.ascontiguousarray(some).tobytes(), found)
    return found
