"""Write the reference values that ``tests/test_methods.py`` compares checks of maps with.

Needs ``torch``, ``ncps`` and ``captum`` (made with torch 2.13, ncps 1.0.1, captum 0.9.0), not MLX;
run it as::

    python tests/golden/make_captum_checks.py

The models, inputs and maps are those of ``captum.npz``, whose weights were trained by
``make_captum.py``. In float64, with what is drawn put in Captum's place: the sets of inputs that
are removed, and the noise. ``captum_checks.npz`` holds, per model::

    <model>/infidelity/<map>         (B,), Captum's infidelity: the mean over sets of removed inputs
                                     of the squared difference between what the map says and what
                                     the target does; of a map of zeros, too
    <model>/sensitivity_max/<map>    (B,), Captum's sensitivity_max
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from captum.attr import InputXGradient, Saliency
from captum.metrics import infidelity, sensitivity_max
from make_captum import MODELS, TARGET

HERE = Path(__file__).parent
# As in deletion() and max_sensitivity(): groups of removed inputs, random orders, draws of noise.
STEPS, ORDERS, RADIUS, DRAWS = 10, 4, 0.1, 4
Pair = tuple[torch.Tensor, ...]


def removed(shape: tuple[int, ...]) -> torch.Tensor:
    """``(sets, B, T, F)``, 1 where an input is removed."""
    rng, cells = np.random.default_rng(0), int(np.prod(shape[1:]))
    sets = []
    for _ in range(ORDERS):
        place = rng.uniform(size=shape).reshape(shape[0], -1).argsort(axis=1).argsort(axis=1)
        sets += [place < np.floor(k * cells / STEPS + 0.5) for k in range(1, STEPS)]
    return torch.tensor(np.stack(sets).reshape(-1, *shape), dtype=torch.float64)


def noise(x: np.ndarray) -> torch.Tensor:
    """``(draws, B, T, F)``."""
    rng, reach = np.random.default_rng(0), RADIUS * x.astype(np.float64).std(axis=(0, 1))
    return torch.tensor(np.stack([rng.uniform(-1, 1, x.shape) * reach for _ in range(DRAWS)]))


def by_sequence(of_each: torch.Tensor) -> torch.Tensor:
    """As Captum has it: all draws of the first sequence, of the second, …"""
    return of_each.transpose(0, 1).reshape(-1, *of_each.shape[2:])


def moved_by(shifts: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    # Of one argument: one of two would be given a radius, too.
    return lambda inputs: inputs + shifts


def main() -> None:
    with np.load(HERE / "captum.npz") as file:
        known = dict(file)
    arrays: dict[str, np.ndarray] = {}
    for kind, make in MODELS.items():
        model = make()
        shapes = json.loads(str(known[f"{kind}/meta"]))["weights"]
        ends = np.cumsum([np.prod(shape) for shape in shapes.values()], dtype=int)[:-1]
        parts = np.split(known[f"{kind}/weights"], ends)
        model.load_state_dict(
            {n: torch.tensor(p.reshape(s)) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        )
        model.double().eval()
        names = ("x", "time_delta") if kind != "gru" else ("x",)
        given = tuple(torch.tensor(known[name], dtype=torch.float64) for name in names)
        with torch.no_grad():
            np.testing.assert_allclose(model(*given)[:, TARGET], known[f"{kind}/values"])
        x, start = given[0], torch.tensor(known["baseline"], dtype=torch.float64)
        sets, shifts = removed(tuple(x.shape)), by_sequence(noise(known["x"]))

        def maps(method: str, kind: str = kind, names: tuple[str, ...] = names) -> Pair:
            return tuple(torch.tensor(known[f"{kind}/{method}/{name}"]) for name in names)

        own = {name: maps(name) for name in ("ig16", "input_x_gradient", "saliency")}
        own["zeros"] = tuple(torch.zeros_like(a) for a in own["ig16"])
        for name, attributions in own.items():
            # A slope says what a change by so much does, an attribution what its removal does.
            size = x - start if name == "saliency" else torch.ones_like(x)

            def perturb(
                inputs: Pair | torch.Tensor,
                sets: torch.Tensor = sets,
                start: torch.Tensor = start,
                size: torch.Tensor = size,
            ) -> tuple[Pair, Pair]:
                first, *others = inputs if isinstance(inputs, tuple) else (inputs,)
                gone = by_sequence(sets)
                moved = torch.where(gone > 0, start.expand_as(first), first)
                by = gone * size.repeat_interleave(len(sets), dim=0)
                return (by, *(torch.zeros_like(a) for a in others)), (moved, *others)

            found = infidelity(
                model, perturb, given, attributions, target=TARGET, n_perturb_samples=len(sets)
            )
            arrays[f"{kind}/infidelity/{name}"] = found.numpy()
        for name, method in (("input_x_gradient", InputXGradient), ("saliency", Saliency)):

            def explain(
                inputs: Pair, make: type = method, model: torch.nn.Module = model, g: Pair = given
            ) -> Pair:
                (moved,) = inputs if isinstance(inputs, tuple) else (inputs,)
                copies = len(moved) // len(g[0])
                others = tuple(a.repeat_interleave(copies, dim=0) for a in g[1:])
                plain = {"abs": False} if make is Saliency else {}
                with torch.enable_grad():
                    found: torch.Tensor = make(model).attribute(
                        moved.clone().requires_grad_(),
                        target=TARGET,
                        additional_forward_args=others or None,
                        **plain,
                    )
                return (found.contiguous(),)

            found = sensitivity_max(explain, x, moved_by(shifts), n_perturb_samples=DRAWS)
            arrays[f"{kind}/sensitivity_max/{name}"] = found.detach().numpy()
        print(kind, {name: a.round(3).tolist() for name, a in arrays.items() if kind in name})
    np.savez_compressed(HERE / "captum_checks.npz", **arrays)


if __name__ == "__main__":
    main()
