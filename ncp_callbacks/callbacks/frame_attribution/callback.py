"""Log which pixels of frames the target depends on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...arrays import to_numpy
from ...attribution import DEFAULT_METHOD, AttributionMethod, method_from
from ...attribution.compute import Attributor
from ...callback import (
    Callback,
    non_finite_count,
    scalar_with_ci,
    sequence_indices,
    small_batch_note,
)
from ...held_out import HeldOutBatch
from ...model import NotApplicable
from ...observation import Observation
from ...plotting.text import number
from ...records import Array, Figure, Note, Record, Scalar
from ...results import FloatArray, compact
from ...scheduling import ScheduleLike
from ...stats import SIZE, Estimate, class_name
from .analysis import half_area, most_important_steps, pixel_maps, region_share
from .plot import Strip, plot_frame_strip

__all__ = ["FrameAttribution"]

_MAX_SEQUENCES, _MAX_FRAMES, _MAX_OUTPUTS = 4, 6, 3
_DESCRIPTIONS = {
    "strip": "Held-out sequence {index}: the {count} frames with the largest absolute {method} of "
    "the {target}, in order of time. Below each frame its pixels' attribution, summed over "
    "channels: orange raises the target, purple lowers it. The colours span the weakest {percent} "
    "of the pixels of this snapshot's pictures; the others have the last colour",
    "half_area": "Smallest share of the pixels that holds half of a sequence's absolute "
    "attribution: 0.5 if all pixels count equally, near 0 if a few do",
    "region_share": "Share of the absolute attribution on the pixels of region=, which are "
    "{area:.1%} of the area",
}
# Colours span the values up to this quantile, or else a single pixel would pale all others.
_QUANTILE = 0.99


class FrameAttribution(Callback):
    """Attribute the target to the pixels of frames, and draw the most important frames.

    It applies to held-out batches of frames with two axes besides the channels, such as ``(B, T,
    H, W, C)``. The numbers of :class:`GradientAttribution` are by time step and channel, summed
    over pixels; here are the pixels. By default it costs nothing if :class:`GradientAttribution`
    runs, which shares its gradient pass.

    ===================================== ====== ==================================================
    Tag                                   Record What
    ===================================== ====== ==================================================
    ``frames/sequence_<index>``           image  the most important frames of a sequence, and the
                                                 attribution of their pixels
    ``frames/half_area``                  scalar smallest share of the pixels that holds half of
                                                 the absolute attribution
    ``frames/region_share``               scalar share of the absolute attribution in ``region``
    ``frames/nonfinite``                  scalar sequences skipped because of NaN or infinity
    ``_ncp/frames_sequence_<index>``      array  ``(H, W)``, absolute attribution, summed over time
                                                 steps
    ===================================== ====== ==================================================

    With a target other than the prediction at the last time step, ``frames`` is followed by its
    name, as in ``frames_loss/sequence_0``. ``half_area`` and ``region_share`` come with 95 % CIs
    over sequences.

    Args:
        sequences: Indices of the held-out sequences to draw, at most 4. None for the first two.
        n_frames: Number of frames in a picture, at most 6.
        region: ``(B, T, H, W)`` bool, the pixels of interest in each frame of the held-out batch,
            such as those of an object. None for none.
        method: See :class:`GradientAttribution`. Methods that replace inputs, like occlusion,
            replace whole channels, and can't be used here.
        baseline: See :class:`GradientAttribution`.
        every, name: See :class:`Callback`.

    Raises:
        TypeError, ValueError: If an argument is invalid.
        ValueError: Before the first step, if ``region`` or ``sequences`` doesn't fit the batch.
    """

    default_name = "frames"

    def __init__(
        self,
        *,
        sequences: Sequence[int] | None = None,
        n_frames: int = 5,
        region: Any = None,
        method: str | AttributionMethod = DEFAULT_METHOD,
        baseline: Any = None,
        every: ScheduleLike | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(every=every, name=name)
        if method_from(method).replaces_inputs:
            raise ValueError(
                f"method={method_from(method).name!r} replaces whole channels, not single pixels: "
                "pass a method by gradients, such as 'integrated_gradients'"
            )
        if not 1 <= n_frames <= _MAX_FRAMES:
            raise ValueError(f"n_frames={n_frames!r}: pass a number from 1 to {_MAX_FRAMES}")
        self._sequences = None if sequences is None else sequence_indices(sequences, _MAX_SEQUENCES)
        self._n_frames, self._region = n_frames, None if region is None else np.array(region)
        self._attributor = Attributor(method, baseline)
        self.needs = self._attributor.needs

    @property
    def conditions(self) -> str:
        """Return the attribution method, its settings and baselines."""
        return self._attributor.summary

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        held_out, shape = observation.held_out, _picture_shape(observation.held_out)
        region = self._region_of(observation, shape)
        group = self.name + observation.target_slug

        def by_pixel(columns: FloatArray) -> FloatArray:
            frames = columns.reshape(*columns.shape[:-1], *held_out.frame_shape)
            return compact(pixel_maps(frames, held_out.channel_axis))

        maps = self._attributor.attribute_columns(observation, by_pixel).inputs
        finite = np.asarray(np.isfinite(maps).all(axis=(1, 2, 3)))
        if finite.any():
            yield from small_batch_note(observation)
            yield from _numbers(maps, finite, held_out, region, group)
        shown = [(index, place) for index, place in self._places(observation) if finite[place]]
        strips = {
            index: _strip(maps[place], index, place, observation, self._n_frames,
                          self._attributor.method.label)
            for index, place in shown
        }  # fmt: skip
        limit = _limit([strip.maps for strip in strips.values()])
        for index, place in shown:
            yield _picture(strips[index], group, limit, observation.step)
            total = np.abs(maps[place], dtype=np.float64).sum(axis=0)
            yield Array(f"_ncp/{group}_sequence_{index}", total)
        yield from non_finite_count(
            group, int((~finite).sum()), "sequences", "their attribution had NaN or infinity"
        )

    def _places(self, observation: Observation) -> list[tuple[int, int]]:
        """Return the indices of the sequences to draw, and their places in the observation.

        Raises:
            ValueError: If the held-out batch doesn't have one.
        """
        whole, here = observation.whole_batch, observation.indices.tolist()
        chosen = self._sequences
        if chosen is None:
            return [(here[place], place) for place in range(min(2, len(here)))]
        if max(chosen) >= whole:
            raise ValueError(
                f"sequences={chosen}: the held-out batch has {whole} sequences; pass indices from "
                f"0 to {whole - 1}"
            )
        # The dry run has two sequences only, which stand for others.
        return [(s, here.index(s) if s in here else i % len(here)) for i, s in enumerate(chosen)]

    def _region_of(
        self, observation: Observation, shape: tuple[int, int]
    ) -> npt.NDArray[np.bool_] | None:
        """Return the region in the sequences of the observation, ``(B, T, H, W)``.

        Raises:
            ValueError: If its shape doesn't fit the held-out batch, or it isn't boolean.
        """
        if self._region is None:
            return None
        fitting = (observation.whole_batch, observation.inputs.shape[1], *shape)
        if self._region.shape != fitting:
            raise ValueError(
                f"region has shape {self._region.shape}: pass (sequences, time steps, height, "
                f"width) of the held-out batch, {fitting}"
            )
        if self._region.dtype != np.bool_:
            raise ValueError(f"region has dtype {self._region.dtype}: pass booleans")
        return np.asarray(self._region[observation.indices], np.bool_)


def _limit(maps: Sequence[FloatArray]) -> float | None:
    """Return the limit of the colours of all pictures of a snapshot; None for maps of zeros."""
    if not maps:
        return None
    sizes = np.concatenate([np.abs(each[each != 0]) for each in maps])
    return float(np.quantile(sizes, _QUANTILE)) if sizes.size else None


def _picture(strip: Strip, group: str, limit: float | None, step: int) -> Figure:
    description = _DESCRIPTIONS["strip"].format(
        index=strip.sequence,
        count=len(strip.time_steps),
        method=strip.method,
        target=strip.target,
        percent=f"{_QUANTILE:.0%}",
    )
    tag, options = f"{group}/sequence_{strip.sequence}", {"limit": limit, "step": step}
    return Figure(tag, plot_frame_strip, strip, options, description)


def _picture_shape(held_out: HeldOutBatch) -> tuple[int, int]:
    """Return height and width of the frames.

    Raises:
        NotApplicable: If a time step is not a picture.
    """
    if not held_out.has_frames:
        raise NotApplicable(
            "the held-out inputs are not frames: pass inputs (batch, time steps, height, width, "
            "channels), or drop this callback"
        )
    if held_out.picture_shape is None:
        raise NotApplicable(
            f"frames of shape {held_out.frame_shape} don't have two axes besides the channels, as "
            "pictures have: reshape the inputs, or read the attribution by channel, which "
            "GradientAttribution logs"
        )
    return held_out.picture_shape


def _numbers(
    maps: FloatArray,
    finite: npt.NDArray[np.bool_],
    held_out: HeldOutBatch,
    region: npt.NDArray[np.bool_] | None,
    group: str,
) -> Iterator[Scalar]:
    """Yield how concentrated the maps are, and how much of them is in the region."""
    mask = None if held_out.mask is None else held_out.mask[finite]
    areas = half_area(maps[finite], mask)
    areas = areas[np.isfinite(areas)]
    if areas.size:
        yield scalar_with_ci(
            f"{group}/half_area",
            float(areas.mean()),
            Estimate.mean(areas, SIZE),
            _DESCRIPTIONS["half_area"],
        )
    if region is not None:
        estimate, area = region_share(maps[finite], region[finite], mask)
        if np.isfinite(estimate.value):
            description = _DESCRIPTIONS["region_share"].format(area=area)
            yield scalar_with_ci(f"{group}/region_share", estimate.value, estimate, description)


def _strip(
    maps: FloatArray, index: int, place: int, observation: Observation, count: int, method: str
) -> Strip:
    """Return the most important frames of the sequence at a place of the observation."""
    held_out = observation.held_out
    real = held_out.mask_array[place]
    steps, shares = most_important_steps(maps, real, count)
    truth, prediction = _truth_and_prediction(observation, place)
    frames = observation.inputs[place].reshape(-1, *held_out.frame_shape)
    return Strip(
        sequence=index,
        time_steps=steps,
        n_time_steps=int(real.sum()),
        frames=_brightness(frames, real, held_out.channel_axis)[steps],
        maps=maps[steps].astype(np.float32),
        shares=shares,
        method=method,
        target=observation.target,
        truth=truth,
        prediction=prediction,
    )


def _brightness(
    frames: FloatArray, real: npt.NDArray[np.bool_], channel_axis: int | None
) -> FloatArray:
    """Return frames ``(T, H, W)`` or ``(T, H, W, 3)``, from 0 to 1 over the sequence."""
    if channel_axis is not None:
        frames = np.moveaxis(frames, channel_axis + 1, -1)
        if frames.shape[-1] != 3:  # Not red, green and blue.
            frames = frames.mean(axis=-1)
    known = frames[real]
    low, high = float(known.min()), float(known.max())
    spread: FloatArray = np.clip((frames - low) / (high - low or 1.0), 0.0, 1.0)
    return spread.astype(np.float32)


def _truth_and_prediction(observation: Observation, place: int) -> tuple[str, str]:
    """Return the true value and the model's output of a sequence, in words; "" if not known."""
    held_out = observation.held_out
    last = int(held_out.last_steps[place])
    outputs = observation.outputs[place]
    output = outputs[last] if outputs.ndim == 2 else outputs
    names = held_out.class_names
    targets = held_out.targets
    own = targets[place] if isinstance(targets, mx.array) else None
    if own is not None and own.ndim and own.shape[0] == held_out.inputs_shape[1]:
        own = own[last]  # One for each time step.
    if own is not None and not mx.issubdtype(own.dtype, mx.floating) and own.size == 1:
        return class_name(names, int(np.array(own).item())), class_name(names, int(output.argmax()))
    if own is None or own.size != output.size:
        return "", _numbers_in_words(output, names)
    # The names once: there is room for no more.
    return _numbers_in_words(to_numpy(own).reshape(-1), names), _numbers_in_words(output, None)


def _numbers_in_words(values: FloatArray, names: tuple[str, ...] | None) -> str:
    """Return the first few numbers, with the names of the outputs if there are any."""
    words = [number(float(value), 2) for value in values[:_MAX_OUTPUTS]]
    if names is not None and len(names) == len(values):
        words = [f"{name} {word}" for name, word in zip(names, words, strict=False)]
    return ", ".join(words) + (", …" if len(values) > _MAX_OUTPUTS else "")
