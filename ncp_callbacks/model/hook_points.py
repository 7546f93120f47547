"""Describe where in a model's calls its states and activations can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .pytrees import Path
from .time_order import Order

__all__ = [
    "CellHook",
    "HookPoints",
    "LayerHook",
    "numbered",
    "numbered_layers",
    "reasons",
    "unknown_rows",
]


@dataclass(frozen=True, eq=False)
class CellHook:
    """Describe where the states of one recurrent cell can be read.

    Attributes:
        name: Path of the module, with ``#1``, ``#2`` if it runs over the sequence repeatedly.
        module: Path of the module. A model may replace the module itself before it is trained.
        out_paths: Paths of the state arrays in its output.
        in_paths: Paths of the state arrays in its arguments ``(args, kwargs)``; empty for a layer
            that runs over the whole sequence.
        calls: Numbers of the module's calls in one pass that return the states after steps 1 to T,
            in the order of running for an order that differs between sequences; one number for a
            layer that runs over the whole sequence.
        first: Number of the call that receives the initial state.
        calls_in_all: Number of calls of the module in one pass.
        order: The order in which it runs over the time steps, or in which a layer returns them.
        turned: True if a layer runs against this order, as one that turns its sequence round and
            its states back.
        whole_sequence: True if one call returns the states of all steps, ``(B, T, H)``.
        between: True if the model changes the states between the calls.
        axes: The batch axis of each state array.
        rows: ``(B,)``, the sequence in each row of the state arrays, of the whole batch, if the
            model runs it in another order; () for the order of the batch.
        notes: Facts that the user should know, one sentence each.
        skipped: The reason why its states can't be read, with the fix; "" if they can.
    """

    name: str
    module: str
    out_paths: tuple[Path, ...]
    in_paths: tuple[Path, ...]
    calls: tuple[int, ...]
    first: int
    calls_in_all: int
    order: Order = Order.FORWARD
    turned: bool = False
    whole_sequence: bool = False
    between: bool = False
    axes: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def reverse(self) -> bool:
        """Return whether it runs from the last time step to the first."""
        return (self.order in (Order.BACKWARD, Order.BACKWARD_WITHIN)) != self.turned

    @property
    def calls_per_step(self) -> int:
        """Return the number of calls of one time step, such as the sub-steps of a solver."""
        return 1 if self.whole_sequence else min(self.calls) - self.first + 1

    @property
    def not_stepped(self) -> str:
        """Return why its steps can't be run or changed one by one, with the fix; "" if they can."""
        if self.skipped:
            return self.skipped
        if self.order not in (Order.FORWARD, Order.BACKWARD):
            return (
                f"{self.name} runs over the real steps of each sequence separately, so a call of "
                "it belongs to no single time step: pass sequences of one length"
            )
        if self.rows:
            return (
                f"the model sorts the sequences that {self.name} runs, so that it would mix the "
                "copies of sequences with which single steps are run: let it keep the order of "
                "the batch"
            )
        return ""

    def axis(self, number: int) -> int:
        """Return the batch axis of a state array, by its number in ``out_paths``."""
        return self.axes[number] if self.axes else 0


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
        flat: True if sequences and time steps share the first axis, ``(B T, ...)``, or
            ``(T B, ...)`` with ``axis=1``.
        order: The order in which it runs over the time steps, see :attr:`CellHook.calls`.
        axis: The batch axis of the array.
        rows: The sequence in each row, see :attr:`CellHook.rows`.
        skipped: The reason why its activations can't be read, with the fix; "" if they can.
    """

    name: str
    module: str
    path: Path
    at_input: bool
    activation: str
    calls: tuple[int, ...]
    calls_in_all: int
    whole_sequence: bool = False
    flat: bool = False
    order: Order = Order.FORWARD
    axis: int = 0
    rows: tuple[int, ...] = ()
    skipped: str = ""


@dataclass(frozen=True)
class HookPoints:
    """Hold the hook points of a model.

    Attributes:
        cells: The cells in the order of their first calls.
        layers: The layers in the order of their first calls.
        notes: Facts about them that the user should know, one sentence each.
        no_cells: The reason for having no states, with the fix; "" if those of a cell can be read.
        no_layers: The reason for having no activations, with the fix; "" if there are some.
    """

    cells: tuple[CellHook, ...]
    layers: tuple[LayerHook, ...]
    notes: tuple[str, ...]
    no_cells: str
    no_layers: str


def reasons(hooks: Sequence[CellHook] | Sequence[LayerHook]) -> str:
    """Return why none of the hooks can be read, or ""."""
    if not all(hook.skipped for hook in hooks):
        return ""
    return "; ".join(dict.fromkeys(hook.skipped for hook in hooks))


def unknown_rows(hook: CellHook | LayerHook, because: str, fix: str = "") -> str:
    """Return that the rows of a hook's arrays belong to no single sequences, with the fix."""
    what = "states" if isinstance(hook, CellHook) else "activations"
    fix = fix or "Let the model keep one row for each sequence, in the order of the batch"
    return (
        f"the {what} of {hook.name} are skipped: they can't be assigned to sequences, because "
        f"{because}. {fix}"
    )


def numbered(name: str, count: int) -> list[str]:
    """Return a name, or ``count`` of them with a number each."""
    return [name] if count == 1 else [f"{name}#{i + 1}" for i in range(count)]


def numbered_layers(hook_points: Sequence[LayerHook]) -> list[LayerHook]:
    """Return the hooks with a number after names that occur repeatedly."""
    names = [hook.name for hook in hook_points]
    numbers = {name: iter(numbered(name, names.count(name))) for name in names}
    return [replace(hook, name=next(numbers[hook.name])) for hook in hook_points]
