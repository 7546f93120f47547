"""The pictures of all callbacks, redrawn from snapshot to snapshot of a training."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from mlx.utils import tree_map
from ncps.wirings import AutoNCP
from test_plots import check_redraws, drawn, shown, states

import ncp_callbacks as ncp
from ncp_callbacks.callbacks import callback_set
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.plots import plot_state_space
from ncp_callbacks.plotting.artists import CellImage
from ncp_callbacks.plotting.page import Page, redrawable
from ncp_callbacks.plotting.parts import shade, whiskers
from ncp_callbacks.plotting.png import encode_png, to_png
from ncp_callbacks.plotting.redraw import Redrawer
from ncp_callbacks.plotting.sprites import Sprites
from ncp_callbacks.plotting.text import shorten, text_width

SNAPSHOTS = 3


# --- what the callbacks draw --------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, rnn: nn.Module, units: int) -> None:
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(units, 1)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return self.out(self.rnn(x, time_delta)[0])


def recorded(model: nn.Module) -> dict[str, list[ncp.Figure]]:
    """The pictures of a training with large steps, by tag."""
    callbacks = [*callback_set("full"), ncp.SinglePredictions(sequences=[0, 1])]
    for callback in callbacks:
        callback.every_nth = 1
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5, 3)).astype("f")
    time_delta = rng.uniform(0.5, 2.0, (4, 5)).astype("f")
    writer = ncp.MemoryWriter()
    batch = ncp.HeldOutBatch(x, time_delta=time_delta)
    with ncp.Monitor(
        model, batch, callbacks, writer=writer, every=1, background=False, verbose=False
    ) as monitor:
        for step in range(SNAPSHOTS):
            model.update(tree_map(lambda p: p * 1.3 + 0.05 * p**2, model.parameters()))
            monitor.on_step_end(10**step)
    figures: dict[str, list[ncp.Figure]] = {}
    for _, record in writer.records:
        if isinstance(record, ncp.Figure):
            figures.setdefault(record.tag, []).append(record)
    return figures


def test_the_pictures_of_all_callbacks_are_those_of_new_figures() -> None:
    mx.random.seed(0)
    models = [
        Net(CfC(3, 8, backbone_units=6), 8),
        Net(LTC(3, AutoNCP(9, 2, seed=1), ode_unfolds=3), 2),
    ]
    seen = set()
    for model in models:
        redrawer = Redrawer()
        for tag, figures in recorded(model).items():
            seen.add(figures[0].plot.__name__)
            pixels = []
            for figure in figures:
                png = redrawer.png(tag, figure.plot, figure.data, figure.options)
                assert png == to_png(figure.plot(figure.data, **figure.options)), tag
                pixels.append(shown(png)[60:])
            # More than the step in the title changes, so that this tests something.
            assert not np.array_equal(pixels[0], pixels[-1]), tag
    assert seen == {
        "plot_dynamics", "plot_faithfulness", "plot_feature_importance", "plot_feature_removal",
        "plot_gradient_reach", "plot_interactions", "plot_output_time", "plot_overview",
        "plot_prediction",
        "plot_sampling_rate", "plot_sanity", "plot_sanity_measures", "plot_state_space",
        "plot_time_constants",
        "plot_time_constants_over_time", "plot_time_sensitivity", "plot_unit_ablation",
        "plot_unit_activity", "plot_unit_information", "plot_unit_meanings", "plot_wiring",
    }  # fmt: skip


# --- on somebody's axes -------------------------------------------------------------------------


def hosted(size: float, dpi: float, make: Any) -> tuple[Figure, np.ndarray]:
    """A picture on axes that fill a figure of 640 × 430 pixels, and its pixels."""
    figure = Figure(figsize=(6.4 * size, 4.3 * size), dpi=dpi)
    ax = figure.add_axes((0, 0, 1, 1))
    assert make(ax) is figure
    return figure, drawn(figure).astype(float)


def test_pictures_on_axes_are_those_of_a_figure_of_their_own() -> None:
    mx.random.seed(0)
    plots: dict[str, Any] = {}
    for model in (
        Net(CfC(3, 8, backbone_units=6), 8),
        Net(LTC(3, AutoNCP(9, 2, seed=1), ode_unfolds=3), 2),
    ):
        for figures in recorded(model).values():
            plots.setdefault(figures[-1].plot.__name__, figures[-1])
    for name, record in plots.items():
        own = drawn(record.plot(record.data, **record.options)).astype(float)

        def make(ax: Any, record: Any = record) -> Figure:
            figure: Figure = record.plot(record.data, **record.options, ax=ax)
            return figure

        _, same = hosted(1.0, 100, make)
        # Twice as many dots on half the inches: as many pixels, if all sizes are halved.
        _, small = hosted(0.5, 200, make)
        ink = np.abs(255 - own).mean()
        assert np.abs(same - own).mean() < 0.02 * ink, name
        assert np.abs(small - own).mean() < 0.25 * ink, name
    assert len(plots) > 15


def test_axes_beside_are_left_alone() -> None:
    figure = Figure(figsize=(12.8, 4.3), dpi=100)
    left, right = figure.subplots(1, 2)
    right.plot([1, 2], [3, 4])
    right.set_title("theirs")
    before = drawn(figure)
    assert plot_state_space(states(), ax=left) is figure
    after = drawn(figure)
    assert np.array_equal(before[:, 660:], after[:, 660:])
    assert not np.array_equal(before[:, :640], after[:, :640])
    box = left.get_window_extent()
    # Nothing is drawn beyond the axes, whose frame is off.
    assert (after[:, : int(box.x0) - 2] == 255).all()


def test_axes_of_pyplot_show_what_is_drawn_on_them() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, ax = plt.subplots()
    try:
        assert plot_state_space(states(), ax=ax) is figure
        assert plt.fignum_exists(figure.number)  # plt.show() shows it.
    finally:
        plt.close(figure)


def test_what_is_no_axes_is_refused() -> None:
    with pytest.raises(TypeError, match=r"ax is a Figure: pass matplotlib's axes"):
        plot_state_space(states(), ax=Figure())  # type: ignore[arg-type]


def test_every_plot_function_takes_axes() -> None:
    functions = {name: getattr(ncp, name) for name in ncp.__all__ if name.startswith("plot_")}
    assert len(functions) > 20
    for name, function in functions.items():
        assert inspect.signature(function).parameters["ax"].default is None, name


# --- texts --------------------------------------------------------------------------------------

TEXTS: list[dict[str, Any]] = [
    {"ha": ha, "va": va, "rotation": rotation, "color": color}
    for ha in ("left", "center", "right")
    for va, rotation in (("baseline", 0.0), ("center_baseline", 0.0), ("center", 90.0))
    for color in ("#1a1a1a", "#0072B2")
]


@pytest.mark.parametrize("style", TEXTS)
def test_texts_are_copied_exactly_to_any_place(style: dict[str, Any]) -> None:
    @redrawable
    def plot(page: Page, places: Any) -> None:
        for x, y, text in places:
            page.text(x, y, text, **style)

    sprites_of = Redrawer()
    rng = np.random.default_rng(3)
    for _ in range(6):
        places = [
            (100 + rng.integers(0, 60) + 200 * i, 60 + rng.integers(0, 60) + 130 * j, text)
            for i, row in enumerate((("Wéxy,", "0.53 SD"), ("÷7%", "−1,5"), ("Δt ×5", "gjpq")))
            for j, text in enumerate(row)
        ]
        assert sprites_of.png("tag", plot, places, {}) == to_png(plot(places))


def test_texts_at_the_edge_over_others_and_over_axes_are_drawn_by_matplotlib() -> None:
    @redrawable
    def plot(page: Page, shift: int) -> None:
        axes = page.axes(80, 60, 600, 360, xlim=(0, 1), ylim=(0, 1))
        axes.axvspan(0.3, 0.8, color="tan")
        page.text(-4 + shift, 100, "over the edge")
        page.text(635 - shift, 420, "over the edge")
        page.text(200, 200, "one over")
        page.text(204 + shift, 203, "another")
        page.text(300 + shift, 250, "half over a colour")

    redrawer = Redrawer()
    for shift in (0, 3, 3, 8, 0):
        assert redrawer.png("tag", plot, shift, {}) == to_png(plot(shift))


def test_texts_that_a_picture_changes_afterwards_are_drawn_as_changed() -> None:
    @redrawable
    def plot(page: Page, size: int) -> None:
        page.text(100, 100, "some text")
        if size:
            page.figure.texts[-1].set_fontsize(size)

    redrawer = Redrawer()
    for size in (0, 30, 30, 0, 12, 0):
        assert redrawer.png("tag", plot, size, {}) == to_png(plot(size))


def test_pixels_of_texts_are_bounded() -> None:
    sprites = Sprites(max_bytes=20_000)
    page = Page(sprites)
    for i in range(40):
        page.text(10 + 150 * (i % 4), 10 + 40 * (i // 4), f"text {i}")
    page.finish()
    page.pixels()
    kept = [sprite.pixels.nbytes for sprite in sprites._sprites.values()]
    assert 0 < sum(kept) == sprites._bytes <= 20_000
    assert len(kept) < 40


def test_digits_have_one_width() -> None:
    assert text_width("1,111.7") == text_width("0,000.0")
    assert shorten("a text with room", 400) == "a text with room"
    for width in range(80, 190):
        assert text_width(shorten("moves by 0.68 SD", width)) <= width


# --- axes and what is on them -------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{}, {"xlim": (0, 1)}, {"ylim": (0, 5)}])
def test_limits_that_follow_the_artists_are_those_of_each_picture(limits: dict[str, Any]) -> None:
    @redrawable
    def plot(page: Page, data: float) -> None:
        axes = page.axes(80, 60, 600, 360, **limits)
        axes.plot([0, data], [1, data])
        axes.stairs([data, 2.0], [0, 1, 2])
        axes.fill_between([0, data], [0, 0], [1, 3 * data])

    redrawer = Redrawer()
    for value in (1, 2, 2, 7, 1):
        assert redrawer.png("tag", plot, value, {}) == to_png(plot(value))


def test_limits_are_found_when_autoscaling_is_switched_on_later() -> None:
    def draw(axes: Any) -> tuple[Any, Any]:
        axes.plot([0, 3], [1, 9])
        axes.bar([2], [12])
        axes.fill_between([0, 5], [0, 0], [-4, 3])
        axes.autoscale()
        return axes.get_xlim(), axes.get_ylim()

    limits = {"xlim": (0, 1), "ylim": (0, 1)}
    axes = Figure().add_subplot(**limits)
    assert draw(Page().axes(80, 60, 600, 360, **limits)) == draw(axes)


@pytest.mark.parametrize("scale", ["log", "symlog", "linear"])
def test_scales_that_depend_on_the_data_are_right(scale: str) -> None:
    @redrawable
    def plot(page: Page, data: float) -> None:
        axes = page.axes(80, 60, 600, 360, xlim=(0, 1), ylim=(0, 9))
        axes.stairs([data, 3.0], [0, 0.5, 1])
        axes.set_yscale(scale)

    redrawer = Redrawer()
    for value in (1, 2, 2, 7, 0.1):
        figure, plain = plot(value), Figure().add_subplot(xlim=(0, 1), ylim=(0, 9))
        plain.stairs([value, 3.0], [0, 0.5, 1])
        plain.set_yscale(scale)
        assert figure.axes[0].dataLim.extents.tolist() == plain.dataLim.extents.tolist()
        assert figure.axes[0].dataLim.minpos.tolist() == plain.dataLim.minpos.tolist()
        assert redrawer.png("tag", plot, value, {}) == to_png(plot(value))


def test_figures_can_be_copied() -> None:
    figure = plot_state_space(states(5))
    copied = pickle.loads(pickle.dumps(figure))
    assert to_png(copied) == to_png(figure)
    limits = figure.axes[0].dataLim.extents
    np.testing.assert_array_equal(copied.axes[0].dataLim.extents, limits)
    assert np.isfinite(limits).all()


def test_lines_across_axes_are_kept_and_change() -> None:
    @redrawable
    def plot(page: Page, at: float) -> None:
        style = {"color": "red", "linewidth": 2}
        axes = page.axes(
            80, 60, 600, 360, xlim=(0, 1), ylim=(0, 1), hlines=[(at, style)], vlines=[(0.5, style)]
        )
        axes.axvspan(0.4, 0.6)

    redrawer = Redrawer()
    for at in (0.25, 0.75, 0.75, 0.25):
        figure = plot(at)
        across, upright = figure.axes[0].lines
        assert list(across.get_ydata()) == [at, at]
        assert list(upright.get_xdata()) == [0.5, 0.5]
        pixels = drawn(figure)
        row = round(430 - (60 + 300 * at))
        red = (pixels[row - 2 : row + 2] == (255, 0, 0)).all(axis=-1)
        assert red[:, 100].any()
        assert not red[:, 340].any()  # What is drawn on the axes is over the lines.
        assert redrawer.png("tag", plot, at, {}) == to_png(figure)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (9, 50), (120, 160)])
@pytest.mark.parametrize("ylim", [(0.0, 1.0), (1.0, 0.0), (0.2, 1.3)])
def test_cells_have_the_pixels_of_imshow(shape: tuple[int, int], ylim: tuple[float, float]) -> None:
    values = np.ma.masked_less(np.random.default_rng(1).uniform(-0.1, 1, shape), 0)
    images = []
    for make in (AxesImage, CellImage):
        axes = Page().axes(80, 60, 601, 359, xlim=(-0.1, 1.1), ylim=ylim)
        image = make(
            axes, cmap=colormaps["viridis"].with_extremes(bad="red"), norm=Normalize(0, 1),
            origin="upper", interpolation="nearest", extent=(0, 1, 0, 1),
        )  # fmt: skip
        image.set_data(values)
        axes.add_image(image)
        image.set_clip_path(axes.patch)
        images.append(drawn(axes.figure).astype(int))
    # Pixels that two cells share may be either's.
    rows, columns = shape
    assert (images[0] != images[1]).any(axis=-1).mean() <= (rows / 359 + columns / 601) * 0.15


def test_areas_end_where_a_curve_is_unknown() -> None:
    page = Page()
    axes = page.axes(80, 60, 600, 360, xlim=(0, 5), ylim=(0, 1))
    low = np.array([0.1, 0.2, np.nan, 0.3, 0.4, 0.5])
    shade(axes, np.arange(6), low, low + 0.2, "blue", 0.5)
    (areas,) = axes.collections
    assert [sorted(set(path.vertices[:, 0])) for path in areas.get_paths()] == [[0, 1], [3, 4, 5]]
    shade(axes, [0, 1], [np.nan, 1], [0, np.nan], "blue", 0.5)
    assert len(axes.collections) == 1


@redrawable
def plot_whiskers(
    page: Page, cis: Any, *, horizontal: bool = False, step: int | None = None, ax: Any = None
) -> None:
    """Draw CIs on axes from 0 to 1."""
    page.title("whiskers", step)
    limits: dict[str, Any] = {"xlim": (0, 1), "ylim": (-0.5, 2.5)}
    if not horizontal:
        limits = {"xlim": (-0.5, 2.5), "ylim": (0, 1)}
    axes = page.axes(80, 60, 600, 360, **limits)
    whiskers(axes, np.arange(3), cis, horizontal=horizontal)


WITHIN = np.array([[0.1, 0.0, np.nan], [0.4, 1.0, np.nan]])
BEYOND = np.array([[0.1, -0.2, 0.5], [0.4, 0.5, 1e30]])


@pytest.mark.parametrize("horizontal", [True, False])
def test_cis_that_go_beyond_the_axes_are_marked(horizontal: bool) -> None:
    def marks(cis: Any) -> list[tuple[Any, list[float], list[float]]]:
        (axes,) = plot_whiskers(cis, horizontal=horizontal).axes
        lines = [line for line in axes.lines if line.get_linestyle() == "None"]
        return [(a.get_marker(), list(a.get_xdata()), list(a.get_ydata())) for a in lines]

    assert marks(WITHIN) == []
    expected = [("<", [0.0], [1.0]), (">", [1.0], [2.0])]
    if not horizontal:
        expected = [("v", [1.0], [0.0]), ("^", [2.0], [1.0])]
    assert marks(BEYOND) == expected
    options = {"horizontal": horizontal}
    check_redraws(plot_whiskers, (WITHIN, options), (BEYOND, options))


# --- PNG ----------------------------------------------------------------------------------------


def test_pictures_of_many_hues_have_a_palette_and_photographs_all_colours() -> None:
    figure, rng = plot_state_space(states(12, 60)), np.random.default_rng(0)
    png = to_png(figure)
    assert png[25] == 3  # The colour type of palettes.
    change = np.abs(shown(png).astype(int) - drawn(figure)).max(axis=-1)
    assert (change > 24).mean() < 0.002
    noise = rng.integers(0, 256, (50, 60, 4), np.uint8)
    noise[..., 3] = 255
    png = encode_png(noise)
    assert png[25] == 2
    np.testing.assert_array_equal(shown(png), noise[..., :3])
