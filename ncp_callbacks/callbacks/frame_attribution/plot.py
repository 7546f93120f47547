"""Draw the most important frames of a sequence, with what is attributed to their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...plotting.limits import checked_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import color_bar
from ...plotting.style import GREY, LEFT, RIGHT, SECOND_Y, SIGNED
from ...plotting.text import number, shorten, text_width
from ...results import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Strip", "plot_frame_strip"]

TOP, BOTTOM, GAP = 362, 62, 8  # Ends of the frames, and pixels between them.
SHARE_Y, STEP_Y = 9, 34  # Baselines of the text below the frames.
PALE = 0.7  # Brightness of black in the frames under a map.


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
    page: Page, strip: Strip, *, limit: float | None = None, step: int | None = None
) -> None:
    """Draw frames in order of time, and below each one the attribution of its pixels.

    Orange pixels raise the target, purple ones lower it, over a pale copy of the frame. Below are
    the time step and the frame's share in the absolute attribution of the sequence.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        strip: The frames.
        limit: Colours span ±``limit``, in units of the target; values beyond have the last colour.
        step: Training step, for the title.

    Raises:
        ValueError: For a limit that is not above 0.
    """
    maps = np.asarray(strip.maps, np.float64)
    limit = checked_limit(limit, maps)
    count = len(strip.time_steps)
    known = (("true", strip.truth), ("predicted", strip.prediction))
    says = ", ".join(f"{what} {text}" for what, text in known if text)
    page.title(f"sequence {strip.sequence}: {says or strip.target}", step)
    end = color_bar(page, number(-limit), f"+{number(limit)}", cmap=SIGNED, note=None)
    carries = f"{count} of {strip.n_time_steps} frames: {strip.shares.sum():.0%} of"
    note = f"{carries} {strip.method} of {strip.target}"
    page.text(end + 14, SECOND_Y, shorten(note, RIGHT - end - 14), color=GREY)

    height, width = maps.shape[1:]
    cell = (RIGHT - LEFT + GAP) / max(count, 4) - GAP
    row = (TOP - BOTTOM - GAP) / 2
    scale = min(cell / width, row / height)
    across, up = scale * width, scale * height
    bright = np.asarray(strip.frames, np.float64)
    bright = np.repeat(bright[..., None], 3, axis=-1) if bright.ndim == 3 else bright
    left = LEFT + (RIGHT - LEFT - count * (cell + GAP) + GAP) / 2
    for i, (time_step, share) in enumerate(zip(strip.time_steps, strip.shares, strict=True)):
        x = round(left + i * (cell + GAP) + (cell - across) / 2)
        for bottom, colors in (
            (TOP - up, bright[i]),
            (TOP - 2 * up - GAP, _over(bright[i], maps[i] / limit)),
        ):
            box = (x, round(bottom), round(x + across), round(bottom + up))
            axes = page.axes(
                *box, spines=("left", "bottom", "right", "top"), ticks="",
                xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5),
            )  # fmt: skip
            _draw(axes, colors)
        middle = x + across / 2
        page.text(middle, STEP_Y, _fitting(f"time step {time_step:,}", cell), ha="center")
        page.text(middle, SHARE_Y, f"{share:.0%}", ha="center")


def _fitting(label: str, width: float) -> str:
    """Return a label without its first word where there is no room for it."""
    return label if text_width(label) <= width else label.split(" ", 1)[1]


def _over(bright: npt.NDArray[np.float64], relative: npt.NDArray[np.float64]) -> Any:
    """Return the colours of a map, from -1 to 1, over a pale grey copy of a frame."""
    from matplotlib import colormaps

    strength = np.clip(np.nan_to_num(relative), -1.0, 1.0)
    colors = colormaps[SIGNED]((strength + 1) / 2)[..., :3]
    pale = PALE + (1 - PALE) * bright.mean(axis=-1, keepdims=True)
    # The middle of the colour map is white, and would hide the frame.
    cover = np.sqrt(np.abs(strength))[..., None]
    return (1 - cover) * pale + cover * colors


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
