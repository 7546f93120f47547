"""Hold the hyper-parameters of a run, flat, as trackers take them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Instruction, valid_text

__all__ = ["RunConfig"]


@dataclass(frozen=True)
class RunConfig(Instruction):
    """Hold the hyper-parameters of a run; :meth:`of` makes one from any mapping."""

    values: Mapping[str, bool | float | str]
    tag: str = "run config"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> RunConfig:
        """Flatten nested mappings with dots; turn what TensorBoard can't take into strings."""
        return cls(dict(_flat(config, "")))


def _flat(config: Mapping[str, Any], prefix: str) -> list[tuple[str, bool | float | str]]:
    flat: list[tuple[str, bool | float | str]] = []
    for key, value in config.items():
        name = valid_text(f"{prefix}{key}")
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, Mapping) and value:
            flat += _flat(value, f"{name}.")
        elif (
            isinstance(value, bool)
            or (isinstance(value, int) and abs(value) < 2**53)
            or (isinstance(value, float) and math.isfinite(value))
        ):
            flat.append((name, value))
        else:
            # TensorBoard keeps numbers as doubles and answers with an error for NaN.
            flat.append((name, valid_text(str(value))))
    return flat
