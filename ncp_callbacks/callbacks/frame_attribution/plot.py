"""Draw the most important frames of a sequence, with what is attributed to their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...plotting.limits import checked_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import color_bar
from ...plotting.style import LEFT, LOWERS, RAISES, RIGHT, SECOND_Y, SIGNED
from ...plotting.text import number, shorten, text_width
from ...results import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Strip", "plot_frame_strip"]

BAR_Y = 346  # Baseline of the colour bar's row.
TOP, BOTTOM, GAP = 334, 4, 8  # Ends of the frames with text, and pixels between them.
STEP_BELOW, SHARE_BELOW = 24, 48  # Pixels from the frames down to the text below them.
BELOW = 56  # Pixels from the frames down to those of the next row.
DARK, BRIGHT = 0.55, 0.85  # Black and white of the frames under a map.


@dataclass(frozen=True, eq=False)
class Strip:
    """Hold the most important frames of one sequence.

    Attributes:
        sequence: Index of the sequence in the held-out batch.
        time_steps: ``(K,)``, the frames' time steps.
        n_time_steps: Number of real time steps of the sequence.
        frames: ``(K, H, W)`` or ``(K, H, W, 3)``, brightness from 0 to 1.
        maps: ``(K, H, W)``, the signed attribution of each pixel.
        shares: ``(K,)``, each frame's share in the sequence's absolute attribution.
        method: The method's name in running text.
        target: The target's name.
        truth: The true value; "" if it is not known.
        prediction: The model's outputs.
    """

    sequence: int
    time_steps: npt.NDArray[np.intp]
    n_time_steps: int
    frames: FloatArray
    maps: FloatArray
    shares: FloatArray
    method: str
    target: str
    truth: str = ""
    prediction: str = ""


@redrawable
def plot_frame_strip(
    page: Page,
    strip: Strip,
    *,
    limit: float | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw frames in order of time, and below each one the attribution of its pixels.

    Orange pixels raise the target, purple ones lower it, over a pale copy of the frame. Below are
    the time step and the frame's share in the absolute attribution of the sequence.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        strip: The frames.
        limit: Colours span ±``limit``, in units of the target; values beyond have the last colour.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For a limit that is not above 0.
    """
    maps = np.asarray(strip.maps, np.float64)
    limit = checked_limit(limit, maps)
    count = len(strip.time_steps)
    page.title(
        f"sequence {strip.sequence}: {strip.shares.sum():.0%} in these {count} of "
        f"{strip.n_time_steps:,} frames",
        step,
    )
    known = (("true", strip.truth), ("predicted", strip.prediction))
    says = " · ".join(f"{what}: {text}" for what, text in known if text)
    page.text(LEFT, SECOND_Y, shorten(says, RIGHT - LEFT))
    color_bar(
        page, number(-limit, 2), f"+{number(limit, 2)}", cmap=SIGNED, y=BAR_Y,
        note=f"{strip.method} of {strip.target}",
    )  # fmt: skip

    height, width = maps.shape[1:]
    columns, scale = _columns(count, height, width)
    across, up = scale * width, scale * height
    cell, block = (RIGHT - LEFT + GAP) / columns, 2 * up + GAP + BELOW
    bright = np.asarray(strip.frames, np.float64)
    bright = np.repeat(bright[..., None], 3, axis=-1) if bright.ndim == 3 else bright
    labels = _time_step_labels(strip.time_steps.tolist(), cell - GAP)
    for i, share in enumerate(strip.shares.tolist()):
        x = round(LEFT + i % columns * cell + (cell - GAP - across) / 2)
        top = TOP - i // columns * block
        for bottom, colors in (
            (top - up, bright[i]),
            (top - 2 * up - GAP, _over(bright[i], maps[i] / limit)),
        ):
            box = (x, round(bottom), round(x + across), round(bottom + up))
            axes = page.axes(
                *box, spines=("left", "bottom", "right", "top"), ticks="",
                xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5),
            )  # fmt: skip
            _draw(axes, colors)
        middle = x + across / 2
        page.text(middle, bottom - STEP_BELOW, labels[i], ha="center")
        page.text(middle, bottom - SHARE_BELOW, f"{share:.0%}", ha="center")


def _columns(count: int, height: int, width: int) -> tuple[int, float]:
    """Return the number of columns that makes frames largest, and the size of a pixel."""
    scales = {}
    for columns in range(1, count + 1):
        across = (RIGHT - LEFT + GAP) / columns - GAP
        up = (TOP - BOTTOM) / -(-count // columns) - BELOW - GAP
        scales[columns] = min(across / width, up / 2 / height)
    best = max(scales, key=lambda columns: (round(scales[columns], 6), columns))
    return best, scales[best]


def _time_step_labels(time_steps: Sequence[int], width: float) -> list[str]:
    """Return the names of time steps, all short where there is no room for one of them."""
    for form in ("time step {:,}", "t = {:,}", "{:,}"):
        labels = [form.format(time_step) for time_step in time_steps]
        if max(map(text_width, labels)) <= width:
            break
    return labels


def _over(bright: npt.NDArray[np.float64], relative: npt.NDArray[np.float64]) -> Any:
    """Return the colours of a map, from -1 to 1, over a pale grey copy of a frame."""
    from matplotlib.colors import to_rgb

    strength = np.clip(np.nan_to_num(relative), -1.0, 1.0)[..., None]
    # The middle of the colour map is white, and would hide the frame.
    colors = np.where(strength > 0, to_rgb(RAISES), to_rgb(LOWERS))
    pale = DARK + (BRIGHT - DARK) * bright.mean(axis=-1, keepdims=True)
    return pale + np.abs(strength) * (colors - pale)


def _draw(axes: Axes, colors: npt.NDArray[np.float64]) -> None:
    """Fill axes with the colours ``(H, W, 3)`` of pixels."""
    from matplotlib.image import AxesImage

    height, width, _ = colors.shape
    fits = height <= axes.bbox.height and width <= axes.bbox.width
    image = AxesImage(
        axes, origin="upper", interpolation="nearest" if fits else "antialiased", filternorm=True,
        resample=True, extent=(-0.5, width - 0.5, height - 0.5, -0.5), zorder=1,
    )  # fmt: skip
    image.set_data(np.clip(colors, 0.0, 1.0))
    axes.add_image(image)
    image.set_clip_path(axes.patch)
