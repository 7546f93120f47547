"""Describe where in a model's calls its states and activations can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from .pytrees import Path

__all__ = ["BATCH_FIRST", "TIME_FIRST", "CellHook", "HookPoints", "LayerHook", "Rows"]

# The order of rows in (B T, ...): all time steps of a sequence, or all sequences of a time step.
BATCH_FIRST: Final = "batch first"
TIME_FIRST: Final = "time first"
Rows: TypeAlias = Literal["batch first", "time first"]


@dataclass(frozen=True, eq=False)
class CellHook:
    """Describe where the states of one recurrent cell can be read.

    Attributes:
        name: Path of the module, with ``#1``, ``#2`` if it runs over the sequence repeatedly.
        module: Path of the module. A model may replace the module itself before it is trained.
        out_paths: Paths of the state arrays in its output.
        in_paths: Paths of the state arrays in its arguments ``(args, kwargs)``; empty for a layer
            that runs over the whole sequence.
        calls: Numbers of the module's calls in one pass that return the states after steps 1 to T;
            one number for a layer that runs over the whole sequence.
        first: Number of the call that receives the initial state.
        calls_in_all: Number of calls of the module in one pass.
        reverse: True if it runs from the last step to the first.
        whole_sequence: True if one call returns the states of all steps, ``(B, T, H)``.
    """

    name: str
    module: str
    out_paths: tuple[Path, ...]
    in_paths: tuple[Path, ...]
    calls: tuple[int, ...]
    first: int
    calls_in_all: int
    reverse: bool = False
    whole_sequence: bool = False


@dataclass(frozen=True, eq=False)
class LayerHook:
    """Describe where the activations of one hidden layer can be read.

    Attributes:
        name: Path of the layer that computes them, with ``#1``, ``#2`` if it does so repeatedly.
        module: Path of the module in whose call they are read.
        path: Path of the array in its output, or in ``(args, kwargs)`` with ``at_input``.
        at_input: True to read arguments, False to read the output.
        activation: Name of the activation function, "unknown" if it isn't recognised.
        calls: Numbers of the module's calls in one pass that belong to steps 1 to T; one number if
            a call covers all steps.
        calls_in_all: Number of calls of the module in one pass.
        whole_sequence: True if one call covers all steps.
        rows: The order of rows if sequences and time steps share the first axis, ``(B T, ...)``;
            None if they have an axis each.
    """

    name: str
    module: str
    path: Path
    at_input: bool
    activation: str
    calls: tuple[int, ...]
    calls_in_all: int
    whole_sequence: bool = False
    rows: Rows | None = None


@dataclass(frozen=True)
class HookPoints:
    """Hold the hook points of a model.

    Attributes:
        cells: The cells in the order of their first calls.
        layers: The layers in the order of their first calls.
        notes: Facts about them that the user should know, one sentence each.
        no_cells: The reason for having no cells, with the fix; "" if there are cells.
        no_layers: The reason for having no layers, with the fix; "" if there are layers.
    """

    cells: tuple[CellHook, ...]
    layers: tuple[LayerHook, ...]
    notes: tuple[str, ...]
    no_cells: str
    no_layers: str
