"""Write the gates that ``tests/test_time_constants.py`` compares those read of CfC cells with.

Needs ``torch`` and ``ncps`` (made with torch 2.13 and ncps 1.0.1), not MLX, and
``ncps_torch_cfc.npz``; run it as::

    python tests/golden/make_gates.py

``ncps_torch_gates.npz`` holds, per case of that file and with its weights, inputs and intervals::

    <case>/gate    (B, T, H), in the order of the state: z; of pure cells the exponential
    <case>/rate    (B, T, H): d logit(z) / d interval; of pure cells -d ln(gate) / d interval

The gate is what the cell's sigmoid, or exponential, gives; the rate is its derivative by autograd.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ncps.wirings
import numpy as np
import torch
from ncps.torch import CfC, CfCCell

HERE = Path(__file__).parent
CASES = ("default-1", "no_gate-2", "pure-1", "AutoNCP-default", "NCP-no_gate", "NCP-pure")
UNITS = 5


def build(file: Any, name: str) -> torch.nn.Module:
    """The model of a case, with its weights, in float64."""
    meta = json.loads(str(file[f"{name}/meta"]))
    kwargs = dict(meta["config"])
    units: Any = UNITS
    if (wiring := kwargs.pop("wiring", None)) is not None:
        arguments = dict(wiring)
        units = getattr(ncps.wirings, arguments.pop("kind"))(**arguments)
    model = CfC(file["x"].shape[-1], units, **kwargs)
    flat, start, weights = file[f"{name}/weights"], 0, {}
    for key, shape in meta["weights"].items():
        size = int(np.prod(shape))
        weights[key] = torch.tensor(flat[start : start + size].reshape(shape))
        start += size
    model.load_state_dict(weights)
    return model.double().eval()


def gates(model: torch.nn.Module, x: np.ndarray, dt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(T, H)`` gates and rates of one sequence, from a state of zeros."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    forward, exp = CfCCell.forward, torch.exp

    def watched(cell: Any, inputs: Any, hx: Any, ts: Any) -> Any:
        # An interval for each unit, so that the derivative is each one's own.
        own = ts.detach().expand(1, hx.shape[1]).clone().requires_grad_()
        seen: list[torch.Tensor] = []

        def recorded(argument: torch.Tensor) -> torch.Tensor:
            seen.append(exp(argument))
            return seen[-1]

        hook = cell.sigmoid.register_forward_hook(lambda *args: seen.append(args[2]))
        torch.exp = recorded
        try:
            out = forward(cell, inputs, hx, own)
        finally:
            torch.exp = exp
            hook.remove()
        (gate,) = seen
        moved = -torch.log(gate) if cell.mode == "pure" else torch.logit(gate)
        (rate,) = torch.autograd.grad(moved.sum(), own, retain_graph=True)
        found.append((gate.detach().numpy()[0], rate.numpy()[0]))
        return out

    h = torch.zeros(1, model.state_size, dtype=torch.float64)
    steps = []
    CfCCell.forward = watched
    try:
        for x_t, dt_t in zip(x, dt, strict=True):
            found.clear()
            given = torch.tensor(x_t, dtype=torch.float64)[None]
            interval = torch.tensor([[float(dt_t)]], dtype=torch.float64)
            _, h = model.rnn_cell(given, h, interval)
            h = h.detach()
            steps.append([np.concatenate(parts) for parts in zip(*found, strict=True)])
    finally:
        CfCCell.forward = forward
    gate, rate = zip(*steps, strict=True)
    return np.stack(gate), np.stack(rate)


def main() -> None:
    """Write the file."""
    arrays: dict[str, np.ndarray] = {}
    with np.load(HERE / "ncps_torch_cfc.npz") as file:
        for name in CASES:
            model = build(file, name)
            pairs = zip(file["x"], file["time_delta"], strict=True)
            found = [gates(model, x, dt) for x, dt in pairs]
            for key, values in zip(("gate", "rate"), zip(*found, strict=True), strict=True):
                arrays[f"{name}/{key}"] = np.stack(values)
    path = HERE / "ncps_torch_gates.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(CASES)} cases, {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
