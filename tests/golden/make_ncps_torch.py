"""Write the reference values that ``tests/test_models.py`` compares the MLX models with.

Needs ``torch`` and ``ncps`` (made with torch 2.13 and ncps 1.0.1), not MLX; run it as::

    python tests/golden/make_ncps_torch.py

Each ``ncps_torch_*.npz`` holds ``x`` (B, T, F), ``time_delta`` (B, T), and, per case::

    <case>/meta        JSON: keyword arguments, wiring, and names and shapes of the weights
    <case>/weights     all weights under their torch names, flattened in that order
    <case>/state0, <case>/outputs, <case>/state
    <case>/grad_x, <case>/grad_time_delta    of the sum of the outputs at the last step

Weights and inputs are float32, results are computed and stored in float64. The sequences go through
the model one at a time: with more than one, ncps pairs a (B, T) array of intervals with the units
instead of with the sequences.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import ncps.wirings
import numpy as np
import torch
from ncps.torch import LTC, CfC

HERE = Path(__file__).parent
BATCH, STEPS, FEATURES, UNITS = 3, 7, 3, 5
AUTO_NCP = {"kind": "AutoNCP", "units": 8, "output_size": 2, "sparsity_level": 0.5, "seed": 7}
NCP = {
    "kind": "NCP",
    "inter_neurons": 4,
    "command_neurons": 3,
    "motor_neurons": 2,
    "sensory_fanout": 2,
    "inter_fanout": 2,
    "recurrent_command_synapses": 3,
    "motor_fanin": 2,
    "seed": 11,
}
MODES = ("default", "pure", "no_gate")


def cfc_cases() -> dict[str, dict[str, Any]]:
    """Plain and wired CfCs by name."""
    cases: dict[str, dict[str, Any]] = {}
    for mode, layers in itertools.product(MODES, (0, 1, 2)):
        cases[f"{mode}-{layers}"] = {"mode": mode, "backbone_layers": layers, "backbone_units": 6}
    for activation in ("relu", "tanh", "gelu", "silu"):
        cases[f"default-1-{activation}"] = {
            "activation": activation,
            "backbone_layers": 1,
            "backbone_units": 6,
        }
    cases["projected"] = {"backbone_units": 6, "proj_size": 2}
    cases["projected-ncp"] = {"wiring": NCP, "proj_size": 3}
    for mode, wiring in itertools.product(MODES, (AUTO_NCP, NCP)):
        cases[f"{wiring['kind']}-{mode}"] = {"wiring": wiring, "mode": mode}
    return cases


def ltc_cases() -> dict[str, dict[str, Any]]:
    """Fully connected and wired LTCs by name."""
    cases: dict[str, dict[str, Any]] = {}
    for wiring, unfolds, implicit in itertools.product((None, AUTO_NCP), (6, 3), (True, False)):
        name = f"{wiring['kind'] if wiring else 'full'}-{unfolds}-{implicit}"
        cases[name] = {"ode_unfolds": unfolds, "implicit_param_constraints": implicit}
        if wiring:
            cases[name]["wiring"] = wiring
    for maps in (("linear", "affine"), ("affine", "linear"), (None, None), ("linear", None)):
        cases[f"maps-{maps[0]}-{maps[1]}"] = {
            "wiring": AUTO_NCP,
            "input_mapping": maps[0],
            "output_mapping": maps[1],
        }
    return cases


def run_case(
    make: type[torch.nn.Module], config: dict[str, Any], x: np.ndarray, time_delta: np.ndarray
) -> dict[str, np.ndarray]:
    """Build one model and compute its reference values."""
    kwargs = dict(config)
    units: Any = UNITS
    if (wiring := kwargs.pop("wiring", None)) is not None:
        arguments = dict(wiring)
        units = getattr(ncps.wirings, arguments.pop("kind"))(**arguments)
    model = make(FEATURES, units, **kwargs)
    with torch.no_grad():
        # Mappings start at 1 and 0, where a mix-up would not show.
        for name, parameter in model.named_parameters():
            if name.split(".")[-1] in {"input_w", "input_b", "output_w", "output_b"}:
                parameter.add_(0.3 * torch.randn_like(parameter))
    weights = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    model.double().eval()
    state0 = np.float32(0.5) * np.random.default_rng(3).standard_normal(
        (BATCH, model.state_size), dtype=np.float32
    )

    results: dict[str, list[np.ndarray]] = {
        key: [] for key in ("outputs", "state", "grad_x", "grad_time_delta")
    }
    for i in range(BATCH):
        xi = torch.tensor(x[i : i + 1], dtype=torch.float64, requires_grad=True)
        dt = torch.tensor(time_delta[i : i + 1], dtype=torch.float64, requires_grad=True)
        outputs, state = model(xi, torch.tensor(state0[i : i + 1], dtype=torch.float64), dt)
        gradients = torch.autograd.grad(outputs[:, -1].sum(), (xi, dt))
        for key, value in zip(results, (outputs, state, *gradients), strict=True):
            results[key].append(value.detach().numpy()[0])
    meta = {"config": config, "weights": {name: value.shape for name, value in weights.items()}}
    return {
        "meta": np.array(json.dumps(meta)),
        "weights": np.concatenate([w.ravel() for w in weights.values()]).astype(np.float32),
        "state0": state0,
        **{key: np.stack(values) for key, values in results.items()},
    }


def main() -> None:
    """Write one file per kind of model."""
    for kind, make, cases in (("cfc", CfC, cfc_cases()), ("ltc", LTC, ltc_cases())):
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((BATCH, STEPS, FEATURES), dtype=np.float32)
        # Irregular, with intervals from far below to well above the time scales of the models.
        time_delta = rng.lognormal(-0.3, 0.9, (BATCH, STEPS)).astype(np.float32)
        arrays = {"x": x, "time_delta": time_delta}
        for name, config in cases.items():
            for key, value in run_case(make, config, x, time_delta).items():
                arrays[f"{name}/{key}"] = value
        path = HERE / f"ncps_torch_{kind}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(cases)} cases, {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
