"""Where in a model's calls its states and activations can be read."""

from __future__ import annotations

from dataclasses import dataclass

from .pytrees import Path

__all__ = ["CellHook", "HookPoints", "LayerHook"]


@dataclass(frozen=True, eq=False)
class CellHook:
    """Where the states of one recurrent cell can be read.

    Attributes:
        name: Module path; with ``#1``, ``#2`` where one module is run over the sequence repeatedly.
        module: Path of the module; not itself, which a model may make anew before it is trained.
        out_paths: Where its output holds the state arrays.
        in_paths: Where its arguments ``(args, kwargs)`` take them; empty for a layer that runs
            over the whole sequence by itself.
        calls: Which of the module's calls in one pass give the states after steps 1 to T; one for
            a layer that runs over the whole sequence.
        first: Which of them is given the state that the cell starts from.
        calls_in_all: How often the module is called in one pass.
        reverse: Whether it runs from the last step to the first.
        whole_sequence: Whether one call returns the states of all steps, ``(B, T, H)``.
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
    """Where the activations of one hidden layer can be read.

    Attributes:
        name: Path of the layer that computes them; with ``#1``, ``#2`` where it does so repeatedly.
        module: Path of the module whose call shows them.
        path: Where in its output, or in ``(args, kwargs)`` where ``at_input``.
        at_input: Whether to read arguments rather than output.
        activation: Name of the activation function, "unknown" if it isn't recognised.
        calls: Which of the module's calls in one pass belong to steps 1 to T; one where it covers
            all steps.
        calls_in_all: How often the module is called in one pass.
        whole_sequence: Whether one call covers all steps.
    """

    name: str
    module: str
    path: Path
    at_input: bool
    activation: str
    calls: tuple[int, ...]
    calls_in_all: int
    whole_sequence: bool = False


@dataclass(frozen=True)
class HookPoints:
    """What was found.

    Attributes:
        cells: In the order in which they are first called.
        layers: Likewise.
        notes: What the user should know about them, one sentence each.
        no_cells: Why there are no cells, with the mend; "" where there are.
        no_layers: Likewise.
    """

    cells: tuple[CellHook, ...]
    layers: tuple[LayerHook, ...]
    notes: tuple[str, ...]
    no_cells: str
    no_layers: str
