"""Log how the units of the backbone are used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from ...activations import ACTIVATIONS
from ...callback import AxisLimit, ByName, Callback, PairedChanges, scalar_with_ci, small_batch_note
from ...model import NotApplicable
from ...observation import Activations, Need, Observation
from ...records import Figure, Histogram, Note, Place, Record, Scalar
from ...scheduling import ScheduleLike
from ...stats import Estimate
from .analysis import BackboneReport, LayerStatistics, layer_statistics
from .plot import plot_unit_activity

__all__ = ["BackboneActivations", "backbone"]


# Tags are ``<layer>_<name>``. Parts in braces are filled with the values of a layer.
_SCALARS = {
    "mean": "Mean activation of {layer}",
    "std": "SD of the activations of {layer}",
    "sparsity": "Share of activations of {layer} that are off or stuck: {sparse_means}",
    "dead_units": "Units of {layer} that never change",
    "treves_rolls": "Treves-Rolls index of {layer}: 1 if all units are equally active",
    "nonfinite": "Samples of {layer} skipped because of NaN or infinity",
}
_PLACES: Mapping[str, Place] = {
    "sparsity": "group",
    "dead_units": "nonzero",
    "nonfinite": "nonzero",
}
_MAX_LAYERS, _MAX_CARDS = 8, 4
_BINS, _MAX_VALUES = 40, 65_536


class BackboneActivations(Callback):
    """Measure activity, sparsity and dead units of the hidden layers inside the recurrent cell.

    The values that sparsity counts depend on the layer's activation function, which is recognised
    by its values: exact zeros for relu, saturation for bounded functions like tanh, the flat side
    for silu and gelu.

    For frames, the layers before the first cell are analysed too. A unit of a convolution is a
    channel at a position; of more than 4,096 units, positions are taken that are spread evenly.

    It costs one forward pass, or nothing if another callback needs a gradient. It does not apply
    to a model without a backbone.

    ================================= ========= ===================================================
    Tag                               Record    What
    ================================= ========= ===================================================
    ``backbone/unit_activity``        image     share of samples in which each unit is active
    ``backbone/<layer>_mean``         scalar    mean activation
    ``backbone/<layer>_std``          scalar    SD of the activations
    ``backbone/<layer>_sparsity``     scalar    share of activations that are off or stuck
    ``backbone/<layer>_dead_units``   scalar    units with one value for all sequences and time
                                                steps
    ``backbone/<layer>_treves_rolls`` scalar    1: all units equally active, 1/units: one is
    ``backbone/<layer>_nonfinite``    scalar    samples skipped because of NaN or infinity
    ``backbone/numbers_changed``      scalar    number of these that changed beyond chance since the
                                                previous snapshot
    ``backbone_hist/<layer>``         histogram activations, without exact zeros
    ================================= ========= ===================================================

    Layers are called ``layer0``, ``layer1``, … in the order of the forward pass; the guide in
    TensorBoard names their modules. At most 8 are logged. Mean, SD, sparsity and ``treves_rolls``
    come with 95 % CIs over sequences, which are unreliable with fewer than 16 sequences.

    Args:
        every, name, max_sequences: See :class:`Callback`.
    """

    needs = frozenset({Need.ACTIVATIONS})
    default_name = "backbone"

    def __init__(
        self,
        *,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        # Below and above 0, by layer: many activations have one side only.
        self._below = self.keep("below", ByName(AxisLimit))
        self._above = self.keep("above", ByName(AxisLimit))
        self._changes = self.keep("changes", PairedChanges())

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        layers = observation.activations
        if not layers:
            raise NotApplicable(observation.no_layers)
        if len(layers) > _MAX_LAYERS:
            yield Note(
                f"{self.name}: {len(layers)} layers were found, the first {_MAX_LAYERS} are "
                "logged; to choose others, pass layers= to the Monitor"
            )
        report = backbone(observation, _MAX_LAYERS)
        if any(stats.samples for stats in report):
            yield _unit_activity(report, self.name, observation.step)
        yield from small_batch_note(observation)
        numbers: dict[str, Estimate] = {}
        for index, (stats, layer) in enumerate(zip(report, layers, strict=False)):
            short = f"layer{index}"
            yield from _scalars(stats, f"{self.name}/{short}", card=index < _MAX_CARDS)
            numbers |= {
                f"{short}_{name}": number
                for name, number in stats.estimates.items()
                if not math.isnan(stats[name])
            }
            if stats.samples:
                limits = self._below[layer.layer], self._above[layer.layer]
                yield from _histogram(layer, f"{self.name}_hist/{short}", observation.mask, *limits)
        yield from self._changes.compare(self.name, numbers, observation)


def _unit_activity(report: BackboneReport, group: str, step: int) -> Figure:
    return Figure(
        f"{group}/unit_activity",
        plot_unit_activity,
        report,
        {"step": step},
        "Share of held-out samples in which each unit is active. Units are sorted; those with one "
        "value for all sequences and time steps are shaded.",
    )


def _scalars(stats: LayerStatistics, tag: str, *, card: bool) -> Iterator[Scalar | Note]:
    """Yield the numbers of one layer, and a note if its activation function is unknown."""
    layer = f"{stats.layer} ({stats.activation}, {stats.units} units)"
    for name, description in _SCALARS.items():
        value = stats.non_finite if name == "nonfinite" else stats[name]
        if not math.isnan(value):
            yield scalar_with_ci(
                f"{tag}_{name}",
                value,
                stats.estimates.get(name),
                description.format(layer=layer, sparse_means=stats.sparse_means),
                place=_PLACES.get(name, "data") if card else "data",
            )
    if stats.activation == "unknown":
        yield Note(
            f"{tag}: the activation function after {stats.layer} is unknown; its sparsity counts "
            f"values that are {ACTIVATIONS['unknown'].sparse_means}"
        )


def _histogram(
    layer: Activations,
    tag: str,
    mask: npt.NDArray[np.bool_] | None,
    below: AxisLimit,
    above: AxisLimit,
) -> Iterator[Histogram]:
    """Yield the distribution of activations; the limits grow to cover them."""
    values = (layer.values if mask is None else layer.values[mask]).ravel()
    # An odd stride: an even one would pick the same units every time.
    values = values[:: (values.size // _MAX_VALUES) | 1]
    values = values[np.isfinite(values) & (values != 0)]
    if values.size:
        low, high = np.quantile(values, [0.005, 0.995])
        below.cover(float(-low))
        above.cover(float(high))
        yield Histogram(
            tag,
            values,
            np.linspace(-below.value, above.value or 1.0, _BINS + 1),
            f"Activations of {layer.layer} that are not exactly 0",
        )


def backbone(observation: Observation, max_layers: int | None = None) -> BackboneReport:
    """Return the statistics of the first ``max_layers`` backbone layers, or of all for None."""
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
