"""Figures are read back: artists against the data, text against the canvas, pixels of the PNG."""

from __future__ import annotations

import inspect
import io
import itertools
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
from typing import Any

import matplotlib
import matplotlib.style
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from ncp_callbacks.analysis import (
    BackboneReport,
    layer_statistics,
    state_space,
    time_sensitivity,
)
from ncp_callbacks.attribution import Attribution, InputXGradient, summarize, temporal_importance
from ncp_callbacks.plots import (
    nice_limit,
    plot_feature_importance,
    plot_state_space,
    plot_time_sensitivity,
    plot_unit_activity,
    to_png,
)
from ncp_callbacks.plotting.limits import integer_ticks
from ncp_callbacks.plotting.page import Page, redrawable
from ncp_callbacks.plotting.redraw import Redrawer
from ncp_callbacks.plotting.text import number, short_names, spread, text_width

WIDTH, HEIGHT = 640, 430


# --- data ---------------------------------------------------------------------------------------


def importance(steps: int = 48, features: int = 8, names: tuple[str, ...] | None = None) -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, steps, features)).astype(np.float32)
    g = (rng.normal(size=(steps, features)) * np.linspace(0, 1, features)).astype(np.float32)
    return temporal_importance(np.abs(x), np.broadcast_to(g, x.shape), feature_names=names)


def sensitivity(
    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0), size: float = 1.0, batch: int = 32
) -> Any:
    rng = np.random.default_rng(1)
    y, a = rng.normal(size=batch), rng.normal(size=batch) + 0.5
    return time_sensitivity({s: y + size * a * np.log(s) for s in scales})


def states(batch: int = 5, steps: int = 20, components: int = 2) -> Any:
    rng = np.random.default_rng(2)
    h = np.cumsum(rng.normal(size=(batch, steps, 7)), axis=1).astype(np.float32)
    return state_space(h, components=components)


def layer(units: int = 48, name: str = "layer0", activation: str = "relu", dead: int = 5) -> Any:
    rng = np.random.default_rng(units)
    a = rng.normal(size=(4, 30, units)) + rng.normal(size=units)
    a = np.maximum(a, 0) if activation == "relu" else np.tanh(2 * a)
    a[..., : min(dead, units)] = 0
    return layer_statistics(a.astype(np.float32), layer=name, activation=activation)


# --- reading figures ----------------------------------------------------------------------------


def texts(figure: Figure) -> list[Text]:
    return [t for t in figure.findobj(Text) if t.get_text() and t.get_visible()]


def words(figure: Figure) -> str:
    return " | ".join(t.get_text() for t in texts(figure))


def title(figure: Figure) -> str:
    """The texts of the first row."""
    first = [t for t in texts(figure) if t.get_window_extent().y0 > 390]
    return " ".join(t.get_text() for t in sorted(first, key=lambda t: t.get_window_extent().x0))


def drawn(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def image_of(figure: Figure) -> Any:
    return figure.axes[0].images[0]


def bar_ends(axes: Any) -> list[np.ndarray]:
    """Left and right ends of horizontal bars, ``(2, N)`` for each colour."""
    each = [np.stack([p.vertices[:4, 0] for p in c.get_paths()]) for c in axes.collections]
    return [np.stack([x.min(axis=1), x.max(axis=1)]) for x in each]


def bar_widths(figure: Figure) -> np.ndarray:
    (ends,) = bar_ends(figure.axes[1])
    return ends[1] - ends[0]


def lines_of(figure: Figure) -> LineCollection:
    (lines,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    return lines


def segments_of(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """``(N, 2, 2)`` segments, ordered by their time, and these times."""
    lines = lines_of(figure)
    each = [path.vertices.reshape(-1, 3, 2)[:, :2] for path in lines.get_paths()]
    times = [np.full(len(s), t) for s, t in zip(each, lines.get_array(), strict=True)]
    return np.concatenate(each), np.concatenate(times)


def points_of(figure: Figure) -> list[tuple[tuple[float, float], Any, Any]]:
    """Starts and ends of trajectories, each with its marker and colour."""
    return [
        ((float(x), float(y)), line.get_marker(), line.get_markerfacecolor())
        for line in figure.axes[0].lines
        if line.get_zorder() >= 14
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def line_with(figure: Figure, y: np.ndarray) -> Any:
    """The line that shows these values."""
    (found,) = [
        line
        for line in figure.axes[0].lines
        if np.shape(line.get_ydata()) == y.shape and np.allclose(line.get_ydata(), y)
    ]
    return found


def check_text(figure: Figure) -> None:
    """No text is cut off or covers another, and each is large and dark enough to be read."""
    figure.draw_without_rendering()
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts(figure)]
    assert boxes
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= WIDTH, text
        assert box.y1 <= HEIGHT, text
    for (a, one), (b, two) in itertools.combinations(boxes, 2):
        apart = (
            one.x1 <= two.x0 + 0.5
            or two.x1 <= one.x0 + 0.5
            or one.y1 <= two.y0 + 0.5
            or two.y1 <= one.y0 + 0.5
        )
        # Lines of text may share the pixel rows of one's descenders and the other's accents.
        assert apart or min(one.y1, two.y1) - max(one.y0, two.y0) <= 3, (a, b)
    for t in texts(figure):
        assert t.get_fontsize() == 16, t.get_text()


EXAMPLES: dict[str, Any] = {
    "importance": lambda: plot_feature_importance(importance(), step=3000),
    "importance many": lambda: plot_feature_importance(importance(60, 40), step=3000),
    "importance array": lambda: plot_feature_importance(importance().importance),
    "time": lambda: plot_time_sensitivity(sensitivity(), reference=sensitivity(size=0.2), step=9),
    "states": lambda: plot_state_space(states(), classes=[0, 1, 2, 0, 1], step=9),
    "states many": lambda: plot_state_space(states(30), classes=np.arange(30) % 3, step=9),
    "states 1-d": lambda: plot_state_space(states(components=1), step=9),
    "units": lambda: plot_unit_activity([layer(), layer(200, "b")], step=9),
}


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> Any:
    return EXAMPLES[request.param]


# --- what all figures have in common ------------------------------------------------------------


def test_is_a_plain_figure_of_the_right_size_and_its_text_fits(example: Any) -> None:
    figure = example()
    assert type(figure) is Figure
    check_text(figure)
    picture = Image.open(io.BytesIO(to_png(figure)))
    assert picture.size == (WIDTH, HEIGHT)
    corners = {picture.convert("RGB").getpixel((x, y)) for x in (0, 639) for y in (0, 429)}
    assert corners == {(255, 255, 255)}


def test_leaves_settings_alone_and_is_what_pyplot_shows(example: Any) -> None:
    import matplotlib.pyplot as plt

    plt.close("all")
    before = dict(matplotlib.rcParams)
    figure = example()
    to_png(figure)
    try:
        assert plt.gcf() is figure
        assert len(plt.get_fignums()) == 1
    finally:
        plt.close("all")
    assert dict(matplotlib.rcParams) == before


def pyplot_numbers_in_a_script(code: str) -> list[str]:
    """Run a script, and return the lines that it prints."""
    head = "import matplotlib, numpy as np, ncp_callbacks as ncp; matplotlib.use('Agg')\n"
    command = [sys.executable, "-W", "error", "-c", head + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_script_without_pyplot_does_not_get_it() -> None:
    code = """
        import sys
        ncp.plot_feature_importance(np.eye(3))
        print("matplotlib.pyplot" in sys.modules)
    """
    assert pyplot_numbers_in_a_script(code) == ["False"]


def test_figures_that_are_not_closed_are_few_and_nothing_is_warned_of() -> None:
    code = """
        import matplotlib.pyplot as plt
        plt.figure()
        figures = [ncp.plot_feature_importance(np.eye(3)) for _ in range(30)]
        print(plt.get_fignums()[0], len(plt.get_fignums()), plt.gcf() is figures[-1])
        figures[0].savefig("/dev/null", format="png")       # It is a figure all the same.
        plt.close("all")
        ncp.plot_feature_importance(np.eye(3))
        print(plt.get_fignums())
    """
    assert pyplot_numbers_in_a_script(code) == ["1 11 True", "[1]"]


def test_pyplot_does_not_know_what_fails_what_threads_draw_and_what_the_package_draws() -> None:
    code = """
        import threading
        import matplotlib.pyplot as plt
        try:
            ncp.plot_feature_importance(np.zeros((2, 2, 2, 2)))
        except Exception as error:
            print(type(error).__name__)
        thread = threading.Thread(target=lambda: ncp.plot_feature_importance(np.eye(3)))
        thread.start()
        thread.join()
        from ncp_callbacks.models import CfC
        result = ncp.interpret_model(CfC(2, 4), np.ones((16, 3, 2), np.float32))
        print(len(result.figures()) > 1, plt.get_fignums())
    """
    assert pyplot_numbers_in_a_script(code)[-1] == "True []"


@pytest.mark.parametrize("style", ["dark_background", "seaborn-v0_8-poster", "own"])
def test_pictures_are_the_same_whatever_the_users_style(example: Any, style: str) -> None:
    own = {
        "font.size": 30, "font.family": "monospace", "font.weight": "bold", "text.usetex": True,
        "axes.grid": True, "axes.spines.top": False, "xtick.top": True, "ytick.minor.visible": True,
        "xtick.labelsize": 3, "lines.linewidth": 9, "figure.dpi": 50, "savefig.dpi": 400,
        "figure.constrained_layout.use": True, "image.cmap": "jet", "image.origin": "lower",
        "image.aspect": "equal", "axes.titlesize": 40, "xtick.direction": "in",
    }  # fmt: skip
    plain = to_png(example())
    with matplotlib.rc_context():
        if style == "own":
            matplotlib.rcParams.update(own)
        else:
            matplotlib.style.use(style)
        styled = to_png(example())
    assert styled == plain


def test_is_the_same_again_and_on_many_threads_at_once() -> None:
    expected = {name: to_png(make()) for name, make in EXAMPLES.items()}
    results: dict[str, bytes] = {}

    def work(name: str) -> None:
        results[name] = to_png(EXAMPLES[name]())

    threads = [threading.Thread(target=work, args=(name,)) for name in EXAMPLES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


def test_importing_does_not_import_matplotlib() -> None:
    code = (
        "import sys, ncp_callbacks.plots;"
        "print([m for m in sys.modules if m.split('.')[0] in ('matplotlib', 'PIL')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf")])
def test_a_limit_must_be_above_zero(limit: float) -> None:
    for plot in (
        lambda: plot_feature_importance(importance(), limit=limit),
        lambda: plot_time_sensitivity(sensitivity(), limit=limit),
        lambda: plot_state_space(states(), limit=limit),
    ):
        with pytest.raises(ValueError, match="limit="):
            plot()


# --- feature importance -------------------------------------------------------------------------


def test_importance_shows_signed_means_with_symmetric_colours() -> None:
    result = importance()
    figure = plot_feature_importance(result, limit=0.25, step=3000)
    image = image_of(figure)
    np.testing.assert_array_equal(np.asarray(image.get_array()), result.signed.T)
    assert image.get_clim() == (-0.25, 0.25)
    assert image.cmap.name == "PuOr_r"
    top = int(result.feature_share.argmax())
    carries = f"feature {top} carries {result.feature_share[top]:.0%}"
    assert title(figure) == f"{carries} · step 3,000"
    # The target is shortened.
    assert "−0.25 | +0.25 | input × gradient of " in words(
        plot_feature_importance(result, limit=0.25, target="y")
    )
    assert "−0.25 | +0.25 | input × gradient o" in words(figure)
    assert [t.get_text() for t in texts(figure) if t.get_text() in result.feature_names] == list(
        result.feature_names
    )


def test_importance_pixels_have_the_colours_of_the_values() -> None:
    values = np.array([[1.0, -1.0], [0.0, 0.5], [-0.5, np.nan]])
    figure = plot_feature_importance(values, limit=1.0)
    pixels, box = drawn(figure), figure.axes[0].get_window_extent()
    for step, feature in itertools.product(range(3), range(2)):
        x = int(box.x0 + (step + 0.5) * box.width / 3)
        y = HEIGHT - int(box.y1 - (feature + 0.5) * box.height / 2)
        value = values[step, feature]
        expected = (
            (189, 189, 189)
            if np.isnan(value)
            else tuple(int(c) for c in colormaps["PuOr_r"]((value + 1) / 2, bytes=True)[:3])
        )
        assert tuple(int(c) for c in pixels[y, x]) == expected
    # Orange, for values above 0, has more red than blue; purple the opposite.
    top = pixels[HEIGHT - int(box.y1 - box.height / 4), int(box.x0 + box.width / 6)]
    assert top[0] > top[2]


def test_importance_share_bars_are_the_shares() -> None:
    result = importance()
    figure = plot_feature_importance(result)
    np.testing.assert_allclose(bar_widths(figure), result.feature_share, rtol=1e-6)
    assert figure.axes[1].get_xlim() == (0, 1)
    assert f"{result.feature_share.max():.0%}" in words(figure)


def test_the_guides_call_with_scores_and_names() -> None:
    scores = np.abs(np.random.default_rng(0).normal(size=(10, 3)))
    names = ["temperature", "pressure", "flow"]
    figure = plot_feature_importance(scores, names)
    image = image_of(figure)
    assert image.cmap.name == "cividis"
    assert image.get_clim() == (0, nice_limit(scores.max()))
    np.testing.assert_array_equal(np.asarray(image.get_array()), scores.T)
    assert all(name in words(figure) for name in names)
    np.testing.assert_allclose(bar_widths(figure), scores.sum(0) / scores.sum())
    same = plot_feature_importance(mx.array(scores), feature_names=names)
    np.testing.assert_allclose(np.asarray(image_of(same).get_array()), scores.T, rtol=1e-6)


@pytest.mark.parametrize("features", [1, 12, 13, 500])
@pytest.mark.parametrize("steps", [1, 2, 50, 12345])
def test_importance_is_readable_at_any_size(steps: int, features: int) -> None:
    rng = np.random.default_rng(steps + features)
    figure = plot_feature_importance(rng.normal(size=(steps, features)), step=10_000_000)
    check_text(figure)
    columns = np.asarray(image_of(figure).get_array())
    assert columns.shape[0] == features
    assert columns.shape[1] <= 200
    assert figure.axes[0].get_xlim() == (-0.5, steps - 0.5)
    named = [t for t in texts(figure) if re.fullmatch(r"feature \d+", t.get_text())]
    assert len(named) == (features if features <= 12 else 5)


def test_importance_names_the_most_important_of_many_also_when_crowded() -> None:
    values = np.full((30, 100), 0.01)
    top = [3, 4, 5, 6, 97]
    values[:, top] = 1.0
    figure = plot_feature_importance(values)
    check_text(figure)
    named = [t for t in texts(figure) if re.fullmatch(r"feature \d+", t.get_text())]
    assert [t.get_text() for t in named] == [f"feature {i}" for i in top]
    heights = [t.get_window_extent().y0 for t in named]
    assert heights == sorted(heights, reverse=True)


def test_importance_bins_are_means_of_whole_steps_without_nan() -> None:
    values = np.random.default_rng(0).normal(size=(1999, 2))
    values[0, 0] = np.nan
    values[10:20, 1] = np.nan
    figure = plot_feature_importance(values)
    columns = image_of(figure).get_array()
    assert columns.shape == (2, 200)
    assert columns[0, 0] == pytest.approx(values[1:10, 0].mean())
    assert columns[1, 199] == pytest.approx(values[1990:, 1].mean())
    assert np.ma.getmaskarray(columns)[1, 1]
    assert "means of 10" in words(figure)
    left, right, _, _ = image_of(figure).get_extent()
    assert (left, right) == (-0.5, 1999.5)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_importance_of_nothing_is_drawn(value: float) -> None:
    figure = plot_feature_importance(np.full((5, 3), value))
    check_text(figure)
    nothing = "0 everywhere" if value == 0 else "no finite values"
    assert title(figure) == f"importance: {nothing}"
    assert "0 | 1 | importance" in words(figure)
    assert words(figure).count("0%") == 3


def test_importance_names_are_shortened_and_no_formulas() -> None:
    names = ("mean arterial blood pressure, invasive (mmHg)", "$\\nonsense", "two\nlines")
    figure = plot_feature_importance(importance(20, 3, names), target="of " * 40, step=1)
    check_text(figure)
    shown = [t.get_text() for t in texts(figure)]
    assert "two lines" in shown
    assert "$\\nonsense" in shown
    # The middle is cut.
    (short,) = [s for s in shown if s.startswith("mean a")]
    assert short.endswith("(mmHg)")
    assert "…" in short


@pytest.mark.parametrize("shape", [(3,), (2, 5, 3), (0, 3), (5, 0)])
def test_importance_of_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"importance has shape \(.*pass \(T, F\)"):
        plot_feature_importance(np.zeros(shape))


def test_importance_names_must_fit() -> None:
    with pytest.raises(ValueError, match="2 feature_names for 3 features"):
        plot_feature_importance(np.zeros((5, 3)), ["a", "b"])


# --- time sensitivity ---------------------------------------------------------------------------


def test_time_curves_are_rms_and_mean_in_sds() -> None:
    result, first = sensitivity(), sensitivity(size=0.2)
    figure = plot_time_sensitivity(result, reference=first, limit=5, step=300)
    axes = figure.axes[0]
    rms = line_with(figure, result.sensitivities)
    mean = line_with(figure, result.mean_change / result.target_sd)
    earlier = line_with(figure, first.sensitivities)
    for line in (rms, mean, earlier):
        np.testing.assert_array_equal(line.get_xdata(), [0.5, 1, 2, 5])
    assert rms.get_linewidth() > mean.get_linewidth()
    assert rms.get_linewidth() * 100 / 72 >= 3
    assert earlier.get_linestyle() != "-"
    assert axes.get_xscale() == "log"
    assert axes.get_ylim() == (-5, 5)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.5×", "1×", "2×", "5×"]
    np.testing.assert_allclose(axes.get_xticks(), [0.5, 1, 2, 5])
    moved = f"{float(result.sensitivities[3]):.2g}"
    assert title(figure) == f"Δt ×5 moves the target by {moved} SD · step 300"
    assert all(word in words(figure) for word in ("RMS", "mean", "first", result.target))
    dotted = [line for line in axes.lines if list(line.get_xdata()) == [1, 1]]
    assert len(dotted) == 1
    assert dotted[0].get_linestyle() not in ("-", "None")
    check_text(figure)


@pytest.mark.parametrize(
    "scales",
    [(1.0,), (1.0, 2.0), (0.5, 1.0), (0.99, 1.0, 1.01), (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
     tuple(float(s) for s in np.geomspace(1e-3, 1e3, 13)), (0.3333333, 1.0, 3.0)],
)  # fmt: skip
@pytest.mark.parametrize("size", [1e-6, 0.05, 400.0])
def test_time_is_readable_for_any_scales(scales: tuple[float, ...], size: float) -> None:
    reference = sensitivity((0.5, 1.0, 2.0), 0.3 * size)
    figure = plot_time_sensitivity(sensitivity(scales, size), reference=reference, step=10_000_000)
    check_text(figure)
    assert 1.0 in figure.axes[0].get_xticks()


def test_time_ignored_is_reported_and_drawn_flat() -> None:
    result = time_sensitivity({s: np.arange(4.0) for s in (0.5, 1.0, 2.0)})
    figure = plot_time_sensitivity(result, step=7)
    assert title(figure) == "the model ignores time · step 7"
    line_with(figure, np.zeros(3))
    check_text(figure)


def test_time_without_an_sd_is_in_units_of_the_target() -> None:
    result = time_sensitivity({s: np.array([np.log(s)]) for s in (0.5, 1.0, 2.0)})
    figure = plot_time_sensitivity(result)
    line_with(figure, result.rms_change)
    assert "change (target units)" in words(figure)
    assert "SD" not in words(figure)


def test_time_without_finite_sequences_is_drawn() -> None:
    figure = plot_time_sensitivity(
        time_sensitivity({s: np.array([np.nan]) for s in (0.5, 1.0, 2.0)})
    )
    check_text(figure)


def test_time_scales_must_be_above_zero() -> None:
    bad = time_sensitivity({s: np.arange(3.0) for s in (0.0, 1.0)})
    with pytest.raises(ValueError, match=r"\[0.0, 1.0\]"):
        plot_time_sensitivity(bad)
    with pytest.raises(ValueError, match="above 0"):
        plot_time_sensitivity(sensitivity(), reference=bad)


# --- state space --------------------------------------------------------------------------------


def test_states_are_lines_coloured_by_time_of_one_norm() -> None:
    result = states(3, 10)
    dt = np.random.default_rng(0).gamma(2, size=(3, 10))
    figure = plot_state_space(result, dt, limit=20, step=300)
    lines, (segments, times) = lines_of(figure), segments_of(figure)
    elapsed = np.cumsum(dt, axis=1)
    found = set()
    for segment, time in zip(segments, times, strict=True):
        off = np.abs(result.scores[:, :-1] - segment[0]).max(axis=-1)
        b, t = np.unravel_index(off.argmin(), off.shape)
        np.testing.assert_allclose(segment, result.scores[b, t : t + 2], rtol=1e-6)
        # Segments of about the same time share a colour.
        assert time == pytest.approx(elapsed[b, t + 1], abs=elapsed.max() / 128 * (1 + 1e-6))
        found.add((b, t))
    assert len(found) == len(segments) == 3 * 9
    assert (lines.norm.vmin, lines.norm.vmax) == (0, elapsed.max())
    axes, bar = figure.axes
    assert axes.get_xlim() == axes.get_ylim() == (-20, 20)
    box = axes.get_window_extent()
    assert box.width == pytest.approx(box.height)
    assert bar.get_ylim() == pytest.approx((0, elapsed.max()))
    shown = words(figure)
    assert f"PC1 ({result.axis_variance_ratio[0]:.0%})" in shown
    assert f"PC2 ({result.axis_variance_ratio[1]:.0%})" in shown
    assert "time" in shown
    both = f"{result.axis_variance_ratio[:2].sum():.0%}"
    assert title(figure) == f"hidden states: {both} of the variance in 2 PCs · step 300"
    assert "new axes" in shown


def test_states_say_new_axes_only_where_they_are() -> None:
    rng = np.random.default_rng(0)
    h = rng.normal(size=(3, 9, 4)).astype(np.float32)
    kept = state_space(h, basis=states_basis(h))
    assert "new axes" in words(plot_state_space(state_space(h), step=5))
    assert "new axes" not in words(plot_state_space(kept, step=5))
    assert "new axes" not in words(plot_state_space(state_space(h)))


def states_basis(h: np.ndarray) -> Any:
    return state_space(h).basis


def test_the_guides_call_with_states_and_time_delta() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 6, 2))
    dt = np.full((4, 6, 1), 0.5)
    figure = plot_state_space(scores, dt)
    np.testing.assert_allclose(lines_of(figure).norm.vmax, 3.0)
    assert "time" in words(figure)
    largest = np.abs(scores).max()
    assert figure.axes[0].get_xlim() == (-nice_limit(largest), nice_limit(largest))
    steps = plot_state_space(mx.array(scores))
    assert lines_of(steps).norm.vmax == 5
    assert "step" in words(steps)


def test_states_ends_have_the_shape_and_colour_of_their_class() -> None:
    result = states(4, 8)
    figure = plot_state_space(result, classes=[1, 0, 1, 0], class_names=["alive", "dead"])
    drawn(figure)
    by_end = {}
    for xy, *look in points_of(figure):
        for b in range(4):
            if np.allclose(xy, result.scores[b, -1]):
                by_end[b] = tuple(look)
    assert by_end[0] == by_end[2] != by_end[1] == by_end[3]
    assert by_end[0][0] != by_end[1][0]
    legend = {t.get_text(): t for t in texts(figure)}
    for name, b in (("alive", 1), ("dead", 0)):
        y = legend[name].get_window_extent().y0
        (marker,) = [
            line for line in figure.artists + figure.lines
            if abs(line.get_ydata()[0] * HEIGHT - y - 8) < 6
        ]  # fmt: skip
        assert (marker.get_marker(), marker.get_markerfacecolor()) == by_end[b]


def test_states_skip_padding_at_either_end_and_gaps() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 10, 2))
    scores[0, 7:] = np.nan
    mask = np.ones((3, 10), bool)
    mask[1, :4] = False
    scores[2, 5] = np.inf
    figure = plot_state_space(scores, np.ones((3, 10)), mask=mask, classes=[0, 0, 0])
    segments, times = segments_of(figure)
    assert np.isfinite(segments).all()
    assert len(segments) == 6 + 5 + (4 + 3)
    # The first real step of each is after one interval, whatever padding came before it.
    second = [np.isin(s, scores[1]).all() for s in segments]
    np.testing.assert_allclose(times[second], [2, 3, 4, 5, 6], atol=10 / 128)
    points = {tuple(np.round(xy, 9)) for xy, *_ in points_of(figure)}
    for b, at in ((0, (0, 6)), (1, (4, 9)), (2, (0, 9))):
        for t in at:
            assert tuple(np.round(scores[b, t], 9)) in points


def test_states_of_many_sequences_become_means_of_classes() -> None:
    result = states(30, 12)
    classes = np.arange(30) % 3
    figure = plot_state_space(result, classes=classes)
    segments = segments_of(figure)[0].reshape(11, 3, 2, 2)
    for c in range(3):
        np.testing.assert_allclose(
            segments[:, c, 1], result.scores[classes == c].mean(0)[1:], rtol=1e-4, atol=1e-5
        )
    clouds = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 10]
    np.testing.assert_allclose(
        np.sort(np.concatenate([c.get_xdata() for c in clouds])), np.sort(result.scores[:, -1, 0])
    )


def test_states_of_many_sequences_without_classes_are_twelve_of_them() -> None:
    figure = plot_state_space(states(40, 5))
    assert len(segments_of(figure)[0]) == 12 * 4


@pytest.mark.parametrize("batch", [1, 12, 20])
@pytest.mark.parametrize("steps", [1, 2, 2000])
@pytest.mark.parametrize("classes", [0, 6, 9])
def test_states_are_readable_at_any_size(batch: int, steps: int, classes: int) -> None:
    result = states(batch, steps)
    figure = plot_state_space(
        result,
        np.full((batch, steps), 1234.567),
        classes=np.arange(batch) % classes if classes else None,
        class_names=["a class with a very long name"] * 4,
        step=10_000_000,
    )
    check_text(figure)
    assert sum(len(path.vertices) for path in lines_of(figure).get_paths()) <= 12 * 300 * 3


@pytest.mark.parametrize("limit", [1e-5, 0.2, 5.0, 20000.0])
@pytest.mark.parametrize("components", [1, 2, 3])
@pytest.mark.parametrize("interval", [1e-4, 3e5])
def test_states_are_readable_in_any_unit(limit: float, components: int, interval: float) -> None:
    result = states(5, 20, components)
    for classes in (None, np.arange(5)):
        figure = plot_state_space(
            result, np.full((5, 20), interval), limit=limit, classes=classes, step=1
        )
        check_text(figure)
        assert "PC3" not in words(figure)


def test_states_of_one_dimension_are_drawn_against_time() -> None:
    scores = np.random.default_rng(0).normal(size=(2, 6, 1))
    dt = np.full((2, 6), 0.5)
    figure = plot_state_space(scores, dt)
    segments = segments_of(figure)[0].reshape(5, 2, 2, 2)
    np.testing.assert_allclose(segments[:, 0, 1, 0], [1.0, 1.5, 2.0, 2.5, 3.0])
    np.testing.assert_allclose(segments[:, 0, 1, 1], scores[0, 1:, 0])
    assert len(figure.axes) == 1
    assert "PC2" not in words(figure)


def test_states_that_are_all_padding_are_drawn() -> None:
    check_text(plot_state_space(np.full((20, 5, 2), np.nan), classes=np.arange(20) % 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"states": np.zeros((5, 2))}, r"\(5, 2\).*states\[None\]"),
        ({"states": np.zeros((3, 5, 32))}, r"\(3, 5, 32\).*state_space\(states\)"),
        ({"time_delta": np.zeros((5, 3))}, r"time_delta has shape \(5, 3\): pass \(3, 5\)"),
        ({"mask": np.zeros(3)}, r"mask has shape \(3,\): pass \(3, 5\)"),
        ({"classes": [0, 1]}, r"classes have shape \(2,\): pass \(3,\)"),
    ],
)
def test_states_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_state_space(**{"states": np.zeros((3, 5, 2)), **arguments})


# --- unit activity ------------------------------------------------------------------------------


def test_units_are_sorted_and_the_dead_shaded() -> None:
    stats = layer(48, dead=5)
    figure = plot_unit_activity(stats, step=3000)
    (axes,) = figure.axes
    (profile,) = [p for p in axes.patches if hasattr(p, "get_data")]
    alive = np.sort(stats.active_fraction[~stats.dead])[::-1]
    np.testing.assert_allclose(profile.get_data().values, alive)
    (shade,) = [p for p in axes.patches if p is not profile]
    assert (shade.get_x(), shade.get_width()) == (43, 5)
    assert axes.get_xlim() == (0, 48)
    assert axes.get_ylim() == (0, 1)
    shown = words(figure)
    assert "dead 10%" in shown
    assert f"zero {stats.sparsity:.0%}" in shown
    assert "48 units" in shown
    assert title(figure) == "5 of 48 units dead · step 3,000"


def test_units_are_worded_by_their_activation() -> None:
    from ncp_callbacks.analysis import ACTIVATIONS

    for name in ACTIVATIONS:
        a = np.random.default_rng(0).normal(size=(2, 9, 4))
        figure = plot_unit_activity(layer_statistics(a, activation=name))
        check_text(figure)
        found = [w for w in ("zero", "off", "saturated", "0 or 6") if f" {w} " in words(figure)]
        assert len(found) == 1
        assert (found == ["saturated"]) == (name in ("tanh", "lecun_tanh", "sigmoid", "elu"))


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
@pytest.mark.parametrize("units", [1, 64, 500])
@pytest.mark.parametrize("name", ["0", "encoder.cell.cfc.backbone.layers.{}.a_very_long_name"])
def test_units_are_readable_at_any_size(layers: int, units: int, name: str) -> None:
    report = BackboneReport(
        tuple(layer(units, name.format(i), ("relu", "tanh")[i % 2]) for i in range(layers))
    )
    figure = plot_unit_activity(report, step=10_000_000)
    check_text(figure)
    assert len(figure.axes) == min(layers, 3)
    assert ("+2 more layers" in words(figure)) == (layers == 5)


def test_units_without_finite_values_are_reported() -> None:
    figure = plot_unit_activity(layer_statistics(np.full((2, 3, 4), np.nan)))
    assert "no finite values" in words(figure)
    check_text(figure)


def test_units_need_a_layer() -> None:
    with pytest.raises(ValueError, match="no layers"):
        plot_unit_activity(BackboneReport(()))


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "limit"),
    [(0.3, 0.5), (0.5, 0.5), (0.51, 1), (1, 1), (-1.01, 2), (5.5e-7, 1e-6), (2e9, 2e9),
     (np.float32(0.2), 0.2), (0, 1), (float("nan"), 1), (float("-inf"), 1)],
)  # fmt: skip
def test_nice_limit(value: float, limit: float) -> None:
    assert nice_limit(value) == limit


@given(st.floats(1e-300, 1e300))
def test_nice_limit_is_the_next_step(value: float) -> None:
    limit = nice_limit(value)
    assert value * (1 - 1e-6) <= limit <= value * 2.5 * (1 + 1e-9)
    assert nice_limit(limit) == limit
    assert f"{limit:e}"[0] in "125"


@given(st.lists(st.floats(0, 300), max_size=9))
def test_spread_labels_keep_their_distance_and_order(wanted: list[float]) -> None:
    placed = spread(wanted, 25, 0, 300)
    ordered = sorted(placed)
    assert all(b - a >= 25 - 1e-6 for a, b in itertools.pairwise(ordered))
    assert all(-1e-6 <= p <= 300 + 1e-6 for p in placed)
    for (w1, p1), (w2, p2) in itertools.combinations(zip(wanted, placed, strict=True), 2):
        assert w1 == w2 or (w1 < w2) == (p1 < p2)


def test_spread_leaves_labels_with_room_where_they_want_to_be() -> None:
    assert spread([200, 10, 100], 25, 0, 300) == [200, 10, 100]
    assert spread([100, 100], 30, 0, 300) == pytest.approx([85, 115])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05, "0.05"), (-2.0, "−2"), (1000.0, "1,000"), (5e-6, "5e−6"), (2e6, "2e6"), (2.5, "2.5")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_integer_ticks_are_few_and_within(last: int, most: int) -> None:
    ticks = integer_ticks(last, most)
    assert ticks[0] == 0
    assert ticks[-1] <= last
    assert len(ticks) <= most + 1


# --- PNG ----------------------------------------------------------------------------------------


def test_png_keeps_flat_colours_exactly(example: Any) -> None:
    figure = example()
    exact = drawn(figure).astype(int)
    shown = np.array(Image.open(io.BytesIO(to_png(figure))).convert("RGB")).astype(int)
    flat = np.ones(exact.shape[:2], bool)
    for axis, shift in itertools.product((0, 1), (1, -1)):
        flat &= (np.roll(exact, shift, axis) == exact).all(axis=-1)
    # Two flat colours that differ by less than 4 levels may become one.
    assert np.abs(shown - exact)[flat].max() < 4
    assert np.abs(shown - exact).mean() < 0.25


def test_png_of_many_colours_keeps_them() -> None:
    figure = Figure(figsize=(2, 1), dpi=50)
    colours = np.random.default_rng(0).random((50, 100, 3))
    figure.figimage(colours)
    shown = np.array(Image.open(io.BytesIO(to_png(figure))).convert("RGB"))
    assert shown.shape == (50, 100, 3)
    np.testing.assert_array_equal(shown, drawn(figure))


def test_png_leaves_the_canvas_of_the_figure() -> None:
    figure = Figure()
    canvas = figure.canvas
    to_png(figure)
    assert figure.canvas is canvas


# --- pictures drawn again and again -------------------------------------------------------------


def looks() -> dict[str, tuple[Any, list[tuple[Any, dict[str, Any]]]]]:
    """Pictures of each kind that follow each other: data, limits, names and shapes change."""
    many = importance(300, 40).signed.astype(np.float64)
    gap = np.where(np.arange(48 * 8).reshape(48, 8) % 11 == 0, np.nan, importance().signed)
    two, three = state_space_pair()
    dt = np.random.default_rng(3).gamma(2, size=(5, 20))
    late = np.where(np.arange(20) < 4, np.nan, 1.0)[:, None]
    ignored = time_sensitivity({s: np.arange(4.0) for s in (0.5, 1.0, 2.0)})
    unknown = time_sensitivity({s: np.array([np.nan]) for s in (0.5, 1.0, 2.0)})
    alone = time_sensitivity({s: np.array([np.log(s)]) for s in (0.5, 1.0, 2.0)})
    empty = layer_statistics(np.full((2, 3, 4), np.nan), layer="layer0")
    return {
        "importance": (
            plot_feature_importance,
            [
                (importance(), {"limit": 0.5}),
                (importance(48, 8, tuple("abcdefgh")), {"limit": 0.5}),
                (importance(), {"limit": 5.0, "target": "$of/another$"}),
                (np.abs(importance().signed), {"limit": 5.0}),
                (gap, {}),
                (-gap, {"target": "gÅ" * 60}),
                (importance(30, 2), {}),
                (np.full((5, 3), np.nan), {}),
            ],
        ),
        "importance of many": (
            plot_feature_importance,
            [
                (many, {"limit": 0.2}),
                (many[:, ::-1], {"limit": 0.2}),
                (many**3, {"limit": 0.2, "feature_names": [f"x{i}" * (i % 9) for i in range(40)]}),
                (importance(2000, 200), {}),
                (importance(50, 500), {}),
            ],
        ),
        "states": (
            plot_state_space,
            [
                (two, {"classes": [0, 1, 2, 0, 1], "limit": 20.0}),
                (three, {"classes": [0, 1, 2, 0, 1], "limit": 20.0}),
                (two, {"classes": [2, 1, 0, 0, 1], "class_names": ["alive", "dead", "gone"]}),
                (three, {"classes": None, "time_delta": dt}),
                (three, {"limit": 50.0, "time_delta": dt}),
                (two.scores * late, {"time_delta": dt, "classes": [0] * 5}),
                (states(30), {"classes": np.arange(30) % 8}),
                (states(30), {}),
                (states(components=1), {"classes": [1, 1, 0, 0, 0]}),
                (states(2, 1), {}),
                (np.full((5, 20, 2), np.nan), {"limit": 5.0}),
            ],
        ),
        "time": (
            plot_time_sensitivity,
            [
                (sensitivity(), {"limit": 5.0}),
                (sensitivity(size=0.3), {"limit": 5.0, "reference": sensitivity()}),
                (sensitivity(size=0.1), {"limit": 0.5, "reference": sensitivity(size=0.05)}),
                (sensitivity((0.1, 1.0, 10.0)), {"reference": sensitivity()}),
                (ignored, {}),
                (unknown, {}),
                (alone, {}),
            ],
        ),
        "units": (
            plot_unit_activity,
            [
                ([layer(), layer(200, "b")], {}),
                ([layer(dead=0), layer(200, "b", dead=190)], {}),
                ([layer(48, "a", "tanh", 48), layer(200, "b")], {}),
                ([layer(64), layer(64, "b" * 80), layer(9, "c"), layer(3, "d")], {}),
                ([empty], {}),
                ([layer()], {}),
            ],
        ),
    }


def state_space_pair() -> tuple[Any, Any]:
    """States, and later ones with the same axes, so that "new axes" is only on the first."""
    rng = np.random.default_rng(5)
    h = np.cumsum(rng.normal(size=(5, 20, 4)), axis=1).astype(np.float32)
    first = state_space(h)
    return first, state_space(1.3 * h + 0.1, basis=first.basis)


LOOKS = looks()


def shown(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


def check_redraws(plot: Any, *pictures: tuple[Any, dict[str, Any]]) -> None:
    """Check that pictures after one another are, byte by byte, those of new figures.

    Each comes twice with another step, so that pages are kept and redrawn, then once more.
    """
    redrawer = Redrawer()
    for step, (data, options) in enumerate([p for p in pictures for _ in range(2)] + [pictures[0]]):
        options = {**options, "step": int(10 ** (step / 4))}
        figure = plot(data, **options)
        check_text(figure)
        expected, png = drawn(figure), redrawer.png("a/tag", plot, data, options)
        assert png == to_png(figure)
        change = np.abs(shown(png).astype(int) - expected).max(axis=-1)
        assert (change > 24).mean() < 0.002
        assert change.mean() < 1.5


@pytest.mark.parametrize("kind", LOOKS)
def test_next_pictures_are_those_of_new_figures(kind: str) -> None:
    plot, pictures = LOOKS[kind]
    check_redraws(plot, *pictures)
    check_redraws(plot, *pictures[::-1])


@pytest.mark.parametrize("kind", LOOKS)
def test_a_page_is_made_again_only_when_its_axes_change(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    new = Page.__init__
    monkeypatch.setattr(Page, "__init__", lambda self, *a: (made.append(1), new(self, *a))[0])
    plot, pictures = LOOKS[kind]
    data, options = pictures[0]
    redrawer = Redrawer()
    for step in range(5):
        redrawer.png("tag", plot, data, {**options, "step": step})
    assert len(made) == 1
    if kind in ("states", "time"):  # Others have no axis in the unit of the limit.
        redrawer.png("tag", plot, data, {**options, "limit": 1000.0})
        assert len(made) == 2


def test_pages_are_dropped() -> None:
    redrawer = Redrawer(max_pages=2)
    plot, pictures = LOOKS["units"]
    expected = redrawer.png("0", plot, *pictures[0])
    for step in range(9):
        redrawer.png(str(step % 3), plot, pictures[0][0], {"step": step})
    assert list(redrawer._pages) == ["1", "2"]
    assert redrawer.png("0", plot, *pictures[0]) == expected


def test_a_kept_page_does_not_grow() -> None:
    redrawer = Redrawer()
    plot, pictures = LOOKS["states"]
    sizes = set()
    for step in range(6):
        redrawer.png("tag", plot, pictures[0][0], {**pictures[0][1], "step": 100 + step})
        ((_, page),) = redrawer._pages.values()
        sizes.add(len(page.figure.findobj()))
    assert len(sizes) == 1


SETTINGS: dict[str, Any] = {
    "limits": lambda axes, value: axes.set_ylim(0, 2 + value),
    "ticks": lambda axes, value: axes.set_xticks([0, value]),
    "scale": lambda axes, value: axes.set_yscale("log" if value > 1 else "linear"),
    "title": lambda axes, value: axes.set_title("title") if value > 1 else None,
    "label": lambda axes, value: axes.set_xlabel("label") if value > 1 else None,
    "grid": lambda axes, value: axes.grid(value > 1),
    "spine": lambda axes, value: axes.spines["left"].set_visible(value > 1),
    "color": lambda axes, value: axes.set_facecolor("tan" if value > 1 else "white"),
    "inset": lambda axes, value: axes.figure.add_axes((0.5, 0.5, 0.1 * value, 0.1)),
    "legend": lambda axes, value: axes.legend([f"{value}"]),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_axes_may_be_set_by_matplotlibs_methods(setting: str) -> None:
    @redrawable
    def plot(page: Page, data: Any) -> None:
        axes = page.axes(80, 60, 600, 360, xlim=(0, 1), ylim=(0, 5))
        axes.plot([0, 1], [1, data])
        SETTINGS[setting](axes, data)

    redrawer = Redrawer()
    for value in (1, 2, 2, 3, 1):
        assert redrawer.png("tag", plot, value, {}) == to_png(plot(value))


def test_text_over_axes_and_what_is_drawn_below_it() -> None:
    @redrawable
    def plot(page: Page, data: Any) -> None:
        axes = page.axes(80, 60, 600, 360, xlim=(0, 1), ylim=(0, 1))
        axes.axhspan(0, data, color="tan")
        page.text(300, 200, "over the axes")
        for i in range(int(10 * data)):
            page.text(20, 40 + 30 * i, f"{i}")

    redrawer = Redrawer()
    for value in (0.2, 0.8, 0.8, 0.3, 0.9):
        assert redrawer.png("tag", plot, value, {}) == to_png(plot(value))


def test_a_picture_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    plot, pictures = LOOKS["states"]
    redrawer = Redrawer()
    expected = redrawer.png("tag", plot, *pictures[0])
    with monkeypatch.context() as patch:
        patch.setattr(LineCollection, "draw", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            redrawer.png("tag", plot, *pictures[1])
    with pytest.raises(ValueError, match="limit="):
        redrawer.png("tag", plot, pictures[0][0], {"limit": -1.0})
    assert redrawer.png("tag", plot, *pictures[0]) == expected


def test_a_tag_may_change_its_plot_and_users_plots_are_drawn_afresh() -> None:
    def own(data: Any, *, title: str) -> Figure:
        figure = Figure(figsize=(2, 1), dpi=50)
        figure.add_subplot().set_title(title)
        figure.axes[0].plot(data)
        return figure

    redrawer = Redrawer()
    for plot, pictures in LOOKS.values():
        assert redrawer.png("tag", own, [1, 2], {"title": "a"}) == to_png(own([1, 2], title="a"))
        assert redrawer.png("tag", plot, *pictures[0]) == Redrawer().png("tag", plot, *pictures[0])


def test_next_pictures_are_the_same_whatever_the_users_style() -> None:
    for plot, pictures in LOOKS.values():
        plain, redrawer = Redrawer().png("tag", plot, *pictures[0]), Redrawer()
        with matplotlib.rc_context():
            matplotlib.style.use("dark_background")
            assert redrawer.png("tag", plot, *pictures[0]) == plain
            assert redrawer.png("tag", plot, *pictures[0]) == plain


def test_redrawers_on_many_threads_do_not_mind_each_other() -> None:
    expected = {kind: [Redrawer().png("tag", p, *picture) for picture in all_[:3]]
                for kind, (p, all_) in LOOKS.items()}  # fmt: skip
    results: dict[str, list[bytes]] = {}

    def work(kind: str) -> None:
        redrawer, (plot, pictures) = Redrawer(), LOOKS[kind]
        results[kind] = [redrawer.png("tag", plot, *picture) for picture in pictures[:3]]

    threads = [threading.Thread(target=work, args=(kind,)) for kind in LOOKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


def test_plots_show_their_arguments_and_can_be_sent_to_other_processes() -> None:
    for plot, _ in LOOKS.values():
        assert "page" not in inspect.signature(plot).parameters
        assert "step" in inspect.signature(plot).parameters
        assert pickle.loads(pickle.dumps(plot)) is plot


def test_the_backend_of_the_environment_does_not_matter() -> None:
    code = (
        "import numpy, ncp_callbacks.plots as p, ncp_callbacks.plotting.redraw as d;"
        "print(len(d.Redrawer().png('a', p.plot_feature_importance, numpy.eye(3), {})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "MPLBACKEND": "module://nonsense"},
    )  # fmt: skip
    assert int(done.stdout) > 1000


@pytest.mark.parametrize("width", [60, 100, 160, 220])
def test_names_stay_different_when_they_are_shortened(width: int) -> None:
    each = [
        [f"mean arterial blood pressure (lead {i})" for i in "abcde"],
        [f"encoder.layers.{i}.cell.time_a.weight" for i in range(40)],
        [f"{i} of the quite long names there are" for i in range(9)],
        ["a name that is too long for its place", "x"],
        [f"the middle of this name is {i} and its ending is always this" for i in range(5)],
    ]
    for names in each:
        short = short_names(names, width)
        assert len(set(short)) == len(names)
        assert all(text_width(name) <= width for name in short)


def test_names_with_room_are_left_alone_and_the_middle_is_cut() -> None:
    assert short_names(["b", "two\nlines"], 200) == ["b", "two lines"]
    (short,) = short_names(["mean arterial blood pressure (lead i)"], 200)
    assert re.fullmatch(r"mean ar\w*…[\w ]*\(lead i\)", short)


def test_lines_over_bars_are_the_cis_of_the_shares() -> None:
    result = importance()
    (rim, ci) = plot_feature_importance(result).axes[1].lines
    ends = np.reshape(ci.get_xdata(), (-1, 3))[:, :2]
    # A share of 0 in all sequences has no CI.
    rows = np.flatnonzero(result.feature_share > 0)
    assert len(rows) == len(result.feature_share) - 1
    np.testing.assert_allclose(ends.T, result.share_ci[:, rows], rtol=1e-6)
    np.testing.assert_array_equal(ci.get_ydata(), np.repeat(rows, 3))
    assert rim.get_linewidth() > ci.get_linewidth()
    # Of one sequence nothing is known about others.
    one = temporal_importance(np.ones((1, 3, 2)), np.ones((1, 3, 2)))
    assert not plot_feature_importance(one).axes[1].lines


def test_the_share_of_elapsed_time_stands_below_the_map() -> None:
    x, t = np.ones((4, 3, 2)), np.ones((4, 3))
    result = summarize(Attribution(InputXGradient(), x * x, t * 2 * t))
    assert result.time_delta_share == pytest.approx(0.5)
    assert "Δt 50%" in words(plot_feature_importance(result))
    assert "Δt" not in words(plot_feature_importance(importance()))


def test_a_notebook_shows_results_as_their_figures() -> None:
    each = [
        (importance(), plot_feature_importance),
        (sensitivity(), plot_time_sensitivity),
        (states(), plot_state_space),
        (BackboneReport((layer(),)), plot_unit_activity),
    ]
    for result, plot in each:
        assert result._repr_png_() == to_png(plot(result))
    # What has no figure keeps its text.
    assert layer()._repr_png_() is None
    assert BackboneReport(())._repr_png_() is None


def test_a_pale_map_names_its_largest_value() -> None:
    values = np.zeros((5, 2))
    values[3, 1], values[2, 0] = -0.2, 0.1
    for limit, pale in ((1.0, True), (0.7, False)):
        shown = words(plot_feature_importance(values, limit=limit))
        assert ("pale: now up to ±0.2" in shown) is pale
        assert ("importance" in shown.lower()) is not pale
    assert "pale: now up to 0.2" in words(plot_feature_importance(np.abs(values), limit=1.0))
