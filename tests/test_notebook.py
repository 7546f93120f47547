"""The tutorial runs, and what it says is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from notebooks import read, run
from scipy.integrate import quad_vec

PATH = Path(__file__).parent.parent / "examples" / "interpret.ipynb"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The notebook after a run from top to bottom, and its names."""
    notebook, names = read(PATH), {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        run(notebook, names)
    return notebook, names


@pytest.fixture(scope="module")
def names(ran: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return ran[1]


def test_both_networks_have_learnt_the_rule(names: dict[str, Any]) -> None:
    for model in names["models"]:
        assert names["explained"](model) > 0.95


def test_attribution_is_what_is_left_of_each_dose(names: dict[str, Any]) -> None:
    # The rule is linear in the doses: its attributions are known in closed form.
    x, age = names["x"], names["age"](names["dt"])
    truth = np.stack(
        [(x[..., i] * np.exp(-age / hours)).mean(axis=0) for i, hours in enumerate((4.0, 1.0))],
        axis=-1,
    )
    np.testing.assert_allclose(names["truth"], truth, rtol=1e-5)
    measured = np.asarray(names["importance"])
    assert np.abs(measured[:, :2] - truth).max() < 0.06
    assert measured[:, 2].max() < 0.02
    shares = names["importance"].feature_share
    assert np.abs(shares[:2] - truth.sum(axis=0) / truth.sum()).max() < 0.1
    assert shares[2] < 0.05


def test_time_lowers_the_level_as_it_should_near_the_data(names: dict[str, Any]) -> None:
    result = names["sensitivity"]
    assert result.scales.tolist() == [0.25, 0.5, 1, 2, 5]
    assert (np.diff(result.mean_change) < 0).all()
    x, dt = names["x"], names["dt"]
    before = names["left_over"](x, dt).sum(axis=(1, 2))
    gaps = []
    for scale, change in zip(result.scales, result.mean_change, strict=True):
        true = (names["left_over"](x, scale * dt).sum(axis=(1, 2)) - before).mean()
        gaps.append(abs(change - true) / before.std())
    assert max(gaps[1], gaps[3]) < 0.2 < max(gaps[0], gaps[4])


def test_sentences_on_states_and_backbone(names: dict[str, Any]) -> None:
    assert names["states"].participation_ratio < 5
    assert names["transitions"].direction_persistence < 0
    assert names["transitions"].saturation < 0.2
    assert names["report"][0].dead_units >= 1


def test_the_log_tells_how_shares_came_about(names: dict[str, Any]) -> None:
    looks = names["run"].arrays["_ncp/attribution_strength"]
    assert list(looks) == [1, 3, 10, 30, 100, 200, 400]
    first, last = (looks[step].sum(axis=0) / looks[step].sum() for step in (1, 400))
    assert last[2] < 0.05 < first[2]
    # From the mean of the batch, integrated along the straight line, the rule has these shares.
    x, dt = (names[name][:32].astype(np.float64) for name in ("x", "dt"))
    x0, dt0 = x.mean(axis=(0, 1)), dt.mean()
    rule = quad_vec(lambda u: names["left_over"](x - x0, dt0 + u * (dt - dt0)).sum(axis=1), 0, 1)[0]
    truth = np.abs(rule).mean(axis=0) / np.abs(rule).mean(axis=0).sum()
    np.testing.assert_allclose(truth, [0.52, 0.48], atol=0.005)  # as the text has them
    shares = [names["run"].scalars[f"attribution_share/{name}"] for name in names["NAMES"]]
    np.testing.assert_allclose([s.values[-1] for s in shares], [*truth, 0], atol=0.05)
    between = {m.name: m.between[0] for m in names["comparison"].measures
               if m.tag == "attribution_strength"}  # fmt: skip
    assert between["rank correlation of feature shares"] == pytest.approx(1)


def outline(cell: dict[str, Any]) -> list[str]:
    """What a cell shows, without numbers."""
    shown = []
    for output in cell["outputs"]:
        text = "".join(output.get("text", [])) + "".join(
            output.get("data", {}).get("text/plain", [])
        )
        shown.append(re.sub(r"[-\d.,\s]+", " ", text))
        shown += sorted(output.get("data", {}))
    return shown


def test_outputs_are_those_of_the_code(ran: tuple[dict[str, Any], dict[str, Any]]) -> None:
    kept, now = (
        [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for notebook in (read(PATH), ran[0])
    )
    mend = "run it anew: python tests/notebooks.py examples/interpret.ipynb"
    assert [outline(cell) for cell in kept] == [outline(cell) for cell in now], mend
    assert sum("image/png" in outline(cell) for cell in kept) == 4


def test_the_file_is_small_and_of_no_machine() -> None:
    text = PATH.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r"/tmp|/home|/root|/Users|/work", text)
    notebook = read(PATH)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
