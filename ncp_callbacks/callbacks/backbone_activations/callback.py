"""How the units of the backbone are used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...callback import AxisLimit, Callback, PairedChanges, scalar_with_ci, small_batch_note
from ...model import NotApplicable
from ...observation import Activations, Need, Observation
from ...records import Figure, Histogram, Note, Record
from ...scheduling import ScheduleLike
from ...stats import Estimate
from .analysis import ACTIVATIONS, BackboneReport, layer_statistics
from .plot import plot_unit_activity

__all__ = ["BackboneActivations", "backbone"]


class BackboneActivations(Callback):
    """Activity, sparsity and dead units of the hidden layers inside the recurrent cell.

    Sparsity counts what it means for the layer's activation function, found by looking: exact
    zeros for relu, saturation for tanh and its kin, the flat side for silu and gelu.

    Costs one forward pass, or nothing beside a callback that needs a gradient. Left out, with a
    message, for a model without a backbone.

    ================================= ========= ===================================================
    Tag                               Record    What
    ================================= ========= ===================================================
    ``backbone/unit_activity``        image     share of samples in which each unit is active
    ``backbone/<layer>_mean``         scalar    mean activation
    ``backbone/<layer>_std``          scalar    SD of the activations
    ``backbone/<layer>_sparsity``     scalar    share of activations that are off or stuck
    ``backbone/<layer>_dead_units``   scalar    units with one value for all sequences and steps
    ``backbone/<layer>_treves_rolls`` scalar    1: all units equally active, 1/units: one is
    ``backbone/<layer>_nonfinite``    scalar    samples left out because of NaN or infinity
    ``backbone/numbers_changed``      scalar    how many of these numbers changed since the last
                                                look beyond chance
    ``backbone_hist/<layer>``         histogram activations, without exact zeros
    ================================= ========= ===================================================

    Layers are called ``layer0``, ``layer1``, … in the order of the forward pass; the guide says
    which modules they are. At most 8 are logged. Mean, SD, sparsity and ``treves_rolls`` come with
    95 % CIs over sequences; of fewer than 16 sequences they are unreliable.

    Args:
        every, name, max_sequences: See :class:`Callback`.
    """

    needs = frozenset({Need.ACTIVATIONS})
    default_name = "backbone"
    _MOST, _BINS, _MAX_VALUES, _CHARTS = 8, 40, 65_536, 4

    def __init__(
        self,
        *,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        # Below and above 0, by layer: many activations have one side only.
        self._limits: dict[str, tuple[AxisLimit, AxisLimit]] = {}
        self._changes = PairedChanges()

    def state_dict(self) -> dict[str, Any]:
        limits = {layer: [side.value for side in pair] for layer, pair in self._limits.items()}
        return {"limits": limits, "changes": self._changes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._limits = {
            layer: (AxisLimit(float(below)), AxisLimit(float(above)))
            for layer, (below, above) in state["limits"].items()
        }
        self._changes.load_state_dict(state.get("changes", {}))

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        layers = observation.activations
        if not layers:
            raise NotApplicable(observation.no_layers)
        if len(layers) > self._MOST:
            yield Note(
                f"{self.name}: {len(layers)} layers were found, the first {self._MOST} are logged; "
                "choose others with layers="
            )
        report = backbone(observation, self._MOST)
        if any(stats.samples for stats in report):
            yield Figure(
                f"{self.name}/unit_activity",
                plot_unit_activity,
                report,
                {"step": observation.step},
                "Share of held-out samples in which each unit is active, units sorted; shaded: "
                "units with one value for all sequences and steps.",
            )
        yield from small_batch_note(observation)
        numbers: dict[str, Estimate] = {}
        for index, (stats, layer) in enumerate(zip(report, layers, strict=False)):
            short = f"{self.name}/layer{index}"
            where = f"{stats.layer} ({stats.activation}, {stats.units} units)"
            sparse = f"Share of activations of {where} that are off or stuck: {stats.sparse_means}"
            for key, value, text in (
                ("mean", stats.mean, f"Mean activation of {where}"),
                ("std", stats.std, f"SD of the activations of {where}"),
                ("sparsity", stats.sparsity, sparse),
                ("dead_units", stats.dead_units, f"Units of {where} that never change"),
                ("treves_rolls", stats.treves_rolls, f"1: all units of {where} equally active"),
                ("nonfinite", stats.non_finite, "Samples left out because of NaN or infinity"),
            ):
                if not math.isnan(value):
                    number = stats.estimates.get(key)
                    if number is not None:
                        numbers[f"layer{index}_{key}"] = number
                    chart = key == "sparsity" and index < self._CHARTS
                    yield scalar_with_ci(f"{short}_{key}", value, number, text, chart=chart)
            if stats.samples:
                yield from self._histogram(layer, f"{self.name}_hist/layer{index}", observation)
            if stats.activation == "unknown":
                yield Note(
                    f"{short}: the activation function after {stats.layer} is none that is known; "
                    f"its sparsity counts values that are {ACTIVATIONS['unknown'].sparse_means}"
                )

        yield from self._changes.compare(self.name, numbers, observation)

    def _histogram(
        self, layer: Activations, tag: str, observation: Observation
    ) -> Iterable[Record | Note]:
        values = layer.values if observation.mask is None else layer.values[observation.mask]
        values = values.ravel()
        # An odd stride: an even one would pick the same units every time.
        values = values[:: (values.size // self._MAX_VALUES) | 1]
        values = values[np.isfinite(values) & (values != 0)]
        if values.size:
            below, above = self._limits.setdefault(layer.layer, (AxisLimit(), AxisLimit()))
            low, high = np.quantile(values, [0.005, 0.995])
            below.cover(float(-low))
            above.cover(float(high))
            yield Histogram(
                tag,
                values,
                np.linspace(-below.value, above.value or 1.0, self._BINS + 1),
                f"Activations of {layer.layer} that are not exactly 0",
            )


def backbone(observation: Observation, max_layers: int | None = None) -> BackboneReport:
    """Return the statistics of the first ``max_layers`` backbone layers; None: of all."""
    return BackboneReport(
        tuple(
            layer_statistics(
                layer.values,
                layer=layer.layer,
                activation=layer.activation,
                mask=observation.mask,
            )
            for layer in observation.activations[:max_layers]
        )
    )
