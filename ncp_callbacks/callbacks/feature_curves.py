"""Choose the features that have a curve of their own, once for a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..records import Array
from ..results import FloatArray

__all__ = ["FeatureCurves", "shares_array"]

_MAX_CURVES, _MAX_CARDS = 12, 8


class FeatureCurves:
    """Hold the features that have a curve, which stay those of the first snapshot.

    Attributes:
        cards: The strongest at the first snapshot, which have a card of their own.

    Args:
        requested: Names of features, at most 12; None for all, or for the 11 strongest at the first
            snapshot of more than 12.

    Raises:
        ValueError: If ``requested`` is no list of at most 12 different names.
    """

    def __init__(self, requested: Sequence[str] | None) -> None:
        if requested is not None and (isinstance(requested, str) or len(requested) > _MAX_CURVES):
            raise ValueError(
                f"features={requested!r}: pass a list of at most {_MAX_CURVES} feature names"
            )
        if requested is not None and len(set(requested)) < len(requested):
            raise ValueError(f"features={requested!r}: a name occurs more than once, pass it once")
        self._requested = requested
        self._curves: list[str] | None = None
        self.cards: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the names."""
        return {"curves": self._curves, "cards": self.cards}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        curves = state["curves"]
        self._curves = None if curves is None else list(curves)
        self.cards = list(state["cards"])

    def of(self, names: Sequence[str], strength: FloatArray | None) -> list[str]:
        """Return the features that have a curve.

        Args:
            names: All features.
            strength: ``(F,)``, which decides at the first snapshot; None for the order of names.

        Raises:
            ValueError: If a requested feature doesn't exist.
        """
        if self._curves is None:
            size = np.zeros(len(names)) if strength is None else np.asarray(strength)
            by_strength = np.argsort(-size, kind="stable").tolist()
            self._curves = self._chosen(list(names), by_strength)
            strongest = [names[i] for i in by_strength if names[i] in self._curves]
            self.cards = strongest[:_MAX_CARDS]
        return self._curves

    def _chosen(self, names: list[str], by_strength: list[int]) -> list[str]:
        if self._requested is not None:
            unknown = [name for name in self._requested if name not in names]
            if unknown:
                raise ValueError(
                    f"features has {unknown[0]!r}, but the held-out batch has {', '.join(names)}: "
                    "pass some of these"
                )
            return list(self._requested)
        if len(names) <= _MAX_CURVES:
            return names
        return [names[i] for i in sorted(by_strength[: _MAX_CURVES - 1])]


def shares_array(group: str, names: Sequence[str], share: FloatArray, ci: FloatArray) -> Array:
    """Return the shares of all features for the interactive view, as ``(F, 3)``.

    Args:
        group: Group of the tag.
        names: ``F`` names of the features.
        share: ``(F,)``.
        ci: ``(2, F)``, ends of the 95 % CIs.
    """
    return Array(
        f"_ncp/{group}_shares",
        np.column_stack([share, *ci]),
        "Share of each feature, and the ends of its 95 % CI",
        kind="shares",
        axes=("feature", "share, low, high"),
        about={"feature_names": list(names)},
    )
