"""Describe arrays in the log, so that a reader need not guess from their tags what they are."""

from __future__ import annotations

import dataclasses

from ..callback import Callback
from ..fingerprint import batch_digest
from ..held_out import HeldOutBatch
from ..observation import Observation
from ..records import Array, Record

__all__ = ["ArrayDescriber"]

# Names beyond these are left to their numbers: a description stands in the log once for each tag.
_MAX_NAMES = 256


class ArrayDescriber:
    """Add to the first array of each tag that has a kind or axes what all callbacks would say.

    That is the callback, the target, the names of the features and classes whose axes it has, and
    the digest of the held-out batch: arrays of runs with other batches must not be subtracted.

    Args:
        held_out: The batch that is analysed.
    """

    def __init__(self, held_out: HeldOutBatch) -> None:
        self._held_out = held_out
        self._digest: str | None = None
        self._described: set[str] = set()

    def describe(self, record: Record, callback: Callback, observation: Observation) -> Record:
        """Return the record, and an array with a kind or axes with its description.

        Args:
            record: What the callback yielded.
            callback: The callback.
            observation: What it was made of.
        """
        if not isinstance(record, Array) or record.tag in self._described:
            return record
        if not (record.kind or record.axes):
            return record
        self._described.add(record.tag)
        if self._digest is None:
            self._digest = batch_digest(self._held_out)
        about = {
            "callback": callback.name,
            "held_out": self._digest,
            "target": observation.target,
            "method": getattr(callback, "method_name", None),
            **record.about,
        }
        names = {"feature": self._held_out.feature_names, "class": self._held_out.class_names}
        for axis, of_axis in names.items():
            if axis in record.axes and of_axis is not None:
                about.setdefault(f"{axis}_names", list(of_axis[:_MAX_NAMES]))
        if "sequence" in record.axes:
            classes = self._held_out.sequence_classes
            size = record.values.shape[record.axes.index("sequence")]
            shown = about.setdefault("sequences", observation.indices[:size].tolist())
            if classes is not None:
                about["sequence_class"] = [int(classes[index]) for index in shown]
            if self._held_out.class_names is not None:
                about["class_names"] = list(self._held_out.class_names[:_MAX_NAMES])
        about = {name: value for name, value in about.items() if value is not None}
        return dataclasses.replace(record, about=about)
