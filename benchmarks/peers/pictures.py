"""Draw and write a snapshot's pictures, histograms and numbers with pyplot and a SummaryWriter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

__all__ = ["Found", "Stopwatch", "log"]

Floats = npt.NDArray[np.floating[Any]]


@dataclass
class Found:
    """Results of one snapshot.

    Attributes:
        attribution: ``(B, T, F)``, input x gradient.
        integrated: ``(B, T, F)``, integrated gradients.
        time_gradient: ``(B, T)``.
        change: Per scale, the mean absolute change of the target.
        states: ``(B, T, H)``.
        scores: ``(B, T, 2)``, principal components of the states.
        variance: ``(2,)``, their shares of the variance.
        activations: Per layer, ``(B, T, N)``.
    """

    attribution: Floats
    time_gradient: Floats
    change: Mapping[float, float]
    states: Floats
    scores: Floats
    variance: Floats
    activations: Mapping[str, Floats] = field(default_factory=dict)
    integrated: Floats | None = None


class Stopwatch:
    """Add up seconds by the name of what was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def heat_map(attribution: Floats, title: str) -> Any:
    figure, axes = plt.subplots(figsize=(6.4, 4.3))
    image = axes.imshow(np.abs(attribution).mean(axis=0).T, aspect="auto", origin="lower")
    figure.colorbar(image, ax=axes)
    axes.set(title=title, xlabel="time step", ylabel="feature")
    return figure


def curve(change: Mapping[float, float]) -> Any:
    figure, axes = plt.subplots(figsize=(6.4, 4.3))
    axes.semilogx(list(change), list(change.values()), marker="o")
    axes.set(title="time sensitivity", xlabel="scale of the elapsed time", ylabel="change")
    return figure


def trajectories(scores: Floats, variance: Floats) -> Any:
    figure, axes = plt.subplots(figsize=(6.4, 4.3))
    for path in scores[:12]:
        axes.plot(path[:, 0], path[:, 1], linewidth=0.8)
        points = axes.scatter(path[:, 0], path[:, 1], c=np.arange(len(path)), s=6)
    figure.colorbar(points, ax=axes, label="time step")
    axes.set(title=f"states, {variance.sum():.0%} of the variance", xlabel="PC 1", ylabel="PC 2")
    return figure


def unit_activity(activations: Mapping[str, Floats]) -> Any:
    figure, rows = plt.subplots(len(activations), figsize=(6.4, 4.3), squeeze=False)
    for (name, values), (axes,) in zip(activations.items(), rows, strict=True):
        axes.bar(np.arange(values.shape[-1]), np.abs(values).mean(axis=(0, 1)))
        axes.set(title=name, xlabel="unit", ylabel="mean activity")
    return figure


def log(writer: Any, step: int, found: Found, watch: Stopwatch) -> None:
    """Draw and write everything, and wait for what a SummaryWriter waits for."""
    pictures: dict[str, Callable[[], Any]] = {
        "attribution/heatmap": lambda: heat_map(found.attribution, "input × gradient"),
        "time_delta/curve": lambda: curve(found.change),
        "hidden/pca": lambda: trajectories(found.scores, found.variance),
        "backbone/unit_activity": lambda: unit_activity(found.activations),
    }
    with watch("figures"):
        for tag, draw in pictures.items():
            writer.add_figure(tag, draw(), step)
    if found.integrated is not None:
        with watch("integrated gradients"):
            figure = heat_map(found.integrated, "integrated gradients")
            writer.add_figure("attribution/integrated", figure, step)
    with watch("numbers"):
        moves = np.diff(found.states, axis=1)
        lengths = np.linalg.norm(moves, axis=-1)
        along = (moves[:, 1:] * moves[:, :-1]).sum(axis=-1)
        cosine = along / (lengths[:, 1:] * lengths[:, :-1] + 1e-8)
        writer.add_histogram("transitions/length", lengths, step)
        share = np.abs(found.attribution).mean(axis=(0, 1))
        share = share / share.sum()
        numbers = {f"attribution_share/{i}": s for i, s in enumerate(share[:12])}
        numbers |= {f"time_delta/x{scale:g}": change for scale, change in found.change.items()}
        numbers |= {
            "attribution/entropy": -(share * np.log(share + 1e-12)).sum() / np.log(len(share)),
            "time_delta/gradient": np.abs(found.time_gradient).mean(),
            "transitions/length_mean": lengths.mean(),
            "transitions/length_sd": lengths.std(),
            "transitions/direction": cosine.mean(),
            "hidden/variance": found.variance.sum(),
        }
        for name, values in found.activations.items():
            writer.add_histogram(f"backbone/{name}", values, step)
            numbers[f"backbone/{name}_mean"] = values.mean()
            numbers[f"backbone/{name}_sd"] = values.std()
            numbers[f"backbone/{name}_sparsity"] = (np.abs(values) < 0.01).mean()
        for tag, value in numbers.items():
            writer.add_scalar(tag, float(value), step)
        writer.flush()
