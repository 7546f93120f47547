"""The helpers for callbacks of one's own: what they yield, and that they are public."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
import textwrap
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from jackknife import t_of_sides

import ncp_callbacks as ncp
from ncp_callbacks import callback as toolkit
from ncp_callbacks.callbacks.state_space.analysis import explained_variance, fit_basis
from ncp_callbacks.models import CfC
from ncp_callbacks.stats import SIZE


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = CfC(3, 5, backbone_units=4)
        self.head = nn.Linear(5, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.rnn(x)[0][:, -1])


def batch(size: int) -> ncp.HeldOutBatch:
    x = np.random.default_rng(0).standard_normal((size, 6, 3))
    return ncp.HeldOutBatch(x.astype(np.float32))


def example() -> type[ncp.Callback]:
    """The class that the module's docstring shows."""
    code = re.search(r"::\n\n(    class .*)", toolkit.__doc__ or "", re.DOTALL)
    assert code
    names: dict[str, object] = {"ncp": ncp, "np": np, "SIZE": SIZE}
    exec(textwrap.dedent(code.group(1)), names)
    made = names["LastStateNorm"]
    assert isinstance(made, type)
    assert issubclass(made, ncp.Callback)
    return made


@pytest.mark.parametrize("size", [8, 20])
def test_the_example_logs_a_number_with_its_ci_and_its_paired_change(size: int) -> None:
    mx.random.seed(0)
    model, writer, found = Net(), ncp.MemoryWriter(), []
    callback = example()(every=1)
    held_out = batch(size)
    with ncp.Monitor(model, held_out, [callback], writer=writer, every=1) as monitor:
        for step in (1, 2):
            model.update({"head": {"weight": model.head.weight + 1}})
            states = model.rnn(mx.array(held_out.inputs))[1]
            found.append(np.linalg.norm(np.array(states, np.float64), axis=1))
            monitor.on_step_end(step)
    means = writer.scalars("last_state_norm/mean")
    np.testing.assert_allclose([v for _, v in means], [n.mean() for n in found], rtol=1e-5)
    (record,) = [r for s, r in writer.records if s == 1 and r.tag == "last_state_norm/mean"]
    assert isinstance(record, ncp.Scalar)
    # By leaving each out, of logarithms.
    logs = np.log([np.delete(found[0], i).mean() for i in range(size)])
    error = np.sqrt((size - 1) / size * ((logs - logs.mean()) ** 2).sum())
    below, above = t_of_sides(-logs)
    expected = found[0].mean() * np.exp([-below * error, above * error])
    np.testing.assert_allclose(record.ci, expected, rtol=1e-4)
    assert ("unreliable" in record.description) == (size < 16)
    assert sum("Hold out at least 16" in note for note in monitor.notes) == (size < 16)
    assert writer.scalars("last_state_norm/mean_change") == [(2, 0.0)]
    assert writer.scalars("last_state_norm/numbers_changed") == [(2, 0.0)]


def test_the_toolkit_is_public() -> None:
    for name in ("AxisLimit", "ByName", "Estimate", "PairedChanges", "cells_with_groups",
                 "for_each_supported_cell",
                 "non_finite_count", "per_cell_names", "scalar_with_ci",
                 "small_batch_note"):  # fmt: skip
        assert name in ncp.__all__
        assert getattr(ncp, name).__doc__


def test_an_axis_limit_grows_in_steps_of_one_two_and_five() -> None:
    limit = ncp.AxisLimit()
    found = [limit.covering(v) for v in (0.0, 0.7, 1.3, 0.1, np.inf, np.nan, 2.1, 30.0)]
    assert found == [1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 5.0, 50.0]


class Keeps(ncp.Callback):
    """Keep an axis limit, and one for each cell."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.limit = self.keep("limit", ncp.AxisLimit())
        self.cells = self.keep("cells", ncp.ByName(ncp.AxisLimit))

    def measure(self, observation: ncp.Observation) -> list[ncp.Record | ncp.Note]:
        return []


def test_parts_that_are_kept_are_restored_in_place() -> None:
    callback, other = Keeps(), Keeps()
    callback.limit.cover(3.0)
    callback.cells["a"].cover(0.3)
    callback.cells["b"].cover(70.0)
    state = json.loads(json.dumps(callback.state_dict()))
    assert state == {"limit": 5.0, "cells": {"a": 0.5, "b": 100.0}}
    # Copies, as the observer's process has them, keep parts of their own.
    for fresh in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        kept = fresh.limit
        fresh.cells["c"].cover(1.0)
        fresh.load_state_dict(state)
        assert fresh.limit is kept
        assert fresh.limit.value == 5.0
        assert {name: limit.value for name, limit in fresh.cells.items()} == state["cells"]
        assert fresh.state_dict() == state
        fresh.limit.cover(9.0)
        assert (callback.limit.value, fresh.state_dict()["limit"]) == (5.0, 10.0)


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "4", None])
@pytest.mark.parametrize(
    ("make", "least"),
    [
        (lambda v: ncp.OutputTime(max_output_steps=v), 2),
        (lambda v: ncp.TimeConstants(max_units=v), 1),
        (lambda v: ncp.UnitAblation(max_units=v), 1),
        (lambda v: ncp.UnitAblation(max_clamped_sequences=v), 1),
        (lambda v: ncp.UnitMeanings(max_units=v), 1),
        (lambda v: ncp.UnitMeanings(recent=v), 1),
        (lambda v: ncp.Dynamics(max_jacobian_sequences=v), 1),
        (lambda v: ncp.Dynamics(exponents=v), 1),
        (lambda v: ncp.Dynamics(max_units=v), 1),
    ],
)
def test_arguments_that_are_no_whole_numbers(make: Any, least: int, value: Any) -> None:
    expected = re.escape(f"={value!r}: pass a whole number of at least {least}")
    with pytest.raises(ValueError, match=expected):
        make(value)
    make(np.int64(7))


def test_statistics_are_not_imported_before_they_are_needed() -> None:
    code = "import sys, ncp_callbacks, ncp_callbacks.callbacks, ncp_callbacks.runs\n"
    code += "print([m for m in ('scipy.stats', 'sklearn', 'scipy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_snapshots_wait_for_no_import_that_takes_a_second() -> None:
    code = """
import sys, mlx.core as mx, mlx.nn as nn, ncp_callbacks as ncp
held_out = ncp.HeldOutBatch(mx.random.normal((8, 12, 3)))
writer = ncp.MemoryWriter()
with ncp.Monitor(nn.GRU(3, 4), held_out, writer=writer, every=1, background=False) as monitor:
    before = set(sys.modules)
    for step in (1, 2):
        monitor.on_step_end(step)
# The second snapshot compares ranks with the first.
assert {"attribution/rank_distance", "hidden/pc1_share"} <= set(writer.tags)
imported = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(imported & {"scipy", "sklearn", "matplotlib"}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("shape", [(500, 8), (40, 40), (5, 12), (2, 3)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_principal_axes_are_those_of_a_singular_value_decomposition(
    shape: tuple[int, int], offset: float
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) * np.geomspace(3, 0.5, shape[1]) + offset
    mean, variances, axes = explained_variance(x)
    _, singular, right = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    known = min(shape[0] - 1, shape[1])
    np.testing.assert_allclose(mean, x.mean(axis=0))
    expected = np.zeros(shape[1])
    expected[: len(singular)] = singular**2 / shape[0]
    np.testing.assert_allclose(variances, expected, rtol=1e-5, atol=1e-9)
    along = np.abs((axes[:known] * right[:known]).sum(axis=1))
    np.testing.assert_allclose(along, 1.0, atol=1e-5)
    # The largest weight of an axis is positive.
    basis = fit_basis(x, 2).components
    assert (basis[np.arange(2), np.abs(basis).argmax(axis=1)] > 0).all()
