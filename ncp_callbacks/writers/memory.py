"""Keep records in memory, for tests and notebooks.

    writer = MemoryWriter()
    with Monitor(model, held_out, writer=writer) as monitor:
        ...
    steps, losses = zip(*writer.scalars("train/loss"))

Nothing is drawn or encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..records import Embedding, Figure, Note, Picture, Record, Scalar
from .base import Tally, Writer

__all__ = ["MemoryWriter"]


class MemoryWriter(Writer):
    """Keep every record as it came, without drawing figures; memory grows with the number of steps.

    Attributes:
        records: ``(step, record)`` in the order of writing.
        run_config: The hyper-parameters logged last.
    """

    def __init__(self) -> None:
        self.records: list[tuple[int, Record]] = []
        self.run_config: dict[str, Any] = {}

    @property
    def tags(self) -> list[str]:
        """Return all tags, in the order of first appearance."""
        records = (record for _, record in self.records)
        return list(dict.fromkeys(r.tag for r in records if not isinstance(r, Note)))

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        """Return ``(step, value)`` of the scalars with this tag."""
        return [
            (step, record.value)
            for step, record in self.records
            if isinstance(record, Scalar) and record.tag == tag
        ]

    def write(self, step: int, records: Sequence[Record]) -> None:
        self.records.extend((step, record) for record in records)

    def log_run_config(self, config: Mapping[str, Any]) -> None:
        self.run_config = dict(config)

    @property
    def tally(self) -> Tally:
        figures = sum(isinstance(record, Figure | Picture) for _, record in self.records)
        embeddings = sum(isinstance(record, Embedding) for _, record in self.records)
        return Tally(len(self.records) - figures - embeddings, figures, embeddings)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
