"""Runs with made-up arrays of every kind that the interactive page shows."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

import ncp_callbacks as ncp

# No two axes have one length, so that none can stand for another.
FEATURES = ["heart rate", "<img src=x onerror=alert(1)>", "oxygen", "age"]
T, F, S, H = 7, 4, 6, 5
DESCRIBED = (1, 4)  # Units that are described in words.


def arrays(rng: np.random.Generator, **about: Any) -> list[ncp.Array]:
    """One snapshot: all kinds, with random numbers."""
    about = {"callback": "attribution", "target": "prediction", "held_out": "abc", **about}
    names = {"feature_names": about.pop("feature_names", FEATURES)}
    of_cell = {"callback": "hidden", "cell": "rnn", "held_out": about["held_out"]}
    of_sequences = of_cell | {
        "sequences": [0, 3, 5, 7, 8, 9], "sequence_class": [0, 1, 1, 0, 0, 1],
        "class_names": ["calm", "worse"],
    }  # fmt: skip
    rms = rng.random(3)
    shares = rng.dirichlet(np.ones(F))
    words = {unit: f"high when ☂ > {rng.random():.3f}; low when ☂ ≤ 0" for unit in DESCRIBED}
    wired = of_cell | {"neuron_kinds": ["inter", "inter", "command", "command", "motor"]}
    return [
        ncp.Array("_ncp/attribution_strength", rng.random((T, F)), kind="attribution",
                  axes=("time step", "feature"), about=about | names),
        ncp.Array("_ncp/attribution_signed", rng.normal(size=(T, F)), kind="attribution signed",
                  axes=("time step", "feature"), about=about | names),
        ncp.Array("_ncp/attribution_shares", np.stack([shares, 0.9 * shares, 1.1 * shares], axis=1),
                  kind="shares", axes=("feature", "share, low, high"), about=about | names),
        ncp.Array("_ncp/time_delta_curve",
                  np.stack([[0.5, 1, 2], rms, rng.normal(size=3), 0.8 * rms, 1.3 * rms]),
                  kind="time curve", axes=("row", "scale"), about={"callback": "time_delta"}),
        ncp.Array("_ncp/time_delta_by_step", rng.normal(size=T), kind="time by step",
                  axes=("time step",), about={"callback": "time_delta"}),
        ncp.Array("_ncp/hidden_trajectory", rng.normal(size=(S, T, 3)), kind="trajectory",
                  axes=("sequence", "time step", "axis"), about=of_sequences),
        ncp.Array("_ncp/hidden_sample", rng.normal(size=(12, H)), kind="state sample",
                  axes=("state", "unit"), about=of_cell),
        ncp.Array("_ncp/hidden_units", rng.normal(size=(T, H)), kind="units",
                  axes=("time step", "unit"), about=of_cell),
        ncp.Array("_ncp/hidden_words", np.frombuffer(json.dumps(words).encode(), np.uint8),
                  kind="unit words", axes=("byte",), about=of_cell),
        ncp.Array("_ncp/wiring_share", rng.dirichlet(np.ones(F + H), size=H).T,
                  kind="wiring share", axes=("source", "neuron"), about=wired | names),
        ncp.Array("_ncp/other", rng.normal(size=3)),
    ]  # fmt: skip


FINDING = {
    "rule": "rests_on", "topic": "What does it rely on?", "severity": "info", "step": 0,
    "sentence": "heart rate has 54 % [49, 58] of the attribution.", "action": "Nothing to do.",
    "numbers": {},
}  # fmt: skip


def records(rng: np.random.Generator, **about: Any) -> list[Any]:
    """One snapshot: arrays, scalars and findings."""
    loss = float(rng.random())
    return [
        *arrays(rng, **about), ncp.Scalar("val/loss", loss),
        ncp.Scalar("a/b", loss, ci=(loss - 0.1, loss + 0.1), place="headline"),
        ncp.Scalar("a/c", loss), ncp.Data("_ncp/findings", json.dumps([FINDING])),
    ]  # fmt: skip


def write_run(folder: Path, seed: int, steps: Any = (10, 20, 30), **about: Any) -> None:
    """Write a run whose numbers depend on its seed."""
    rng = np.random.default_rng(seed)
    with contextlib.closing(ncp.TensorBoardWriter(folder)) as writer:
        for step in steps:
            writer.write(step, records(rng, **about))
