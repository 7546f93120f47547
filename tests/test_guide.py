"""The guide to pictures shows every picture that is logged, and its script makes them all."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from promises import pattern, promised

import ncp_callbacks as ncp
from ncp_callbacks.callbacks import callback_set
from ncp_callbacks.findings.run_findings import OVERVIEW
from ncp_callbacks.runs import read_run

EXAMPLES = Path(__file__).parent.parent / "examples"
GUIDE = (EXAMPLES / "guide.md").read_text()
SHOWN = {path: words for words, path in re.findall(r"!\[(.*?)\]\(guide/(.*?)\)", GUIDE, re.DOTALL)}
# Pictures that have no pair of their own in the guide.
ALIKE = {
    "attribution/heatmap_class_<name>": "is read as attribution/heatmap",
    "attribution/heatmap_worst": "is read as attribution/heatmap",
    "output_time/local": "is read as attribution/heatmap",
}


def guide() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guide", EXAMPLES / "guide.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["guide"] = module  # dataclasses search for their module
    spec.loader.exec_module(module)
    return module


script = guide()
PATHS = {pair.file: pair.tag for pair in script.PAIRS}


def pictures_of_all() -> set[str]:
    """Return the tags of pictures, with placeholders, that the callbacks promise."""
    callbacks = [*callback_set("full", pictures=True), ncp.SinglePredictions()]
    tags = {
        tag
        for callback in callbacks
        for tag, kind in promised(type(callback)).items()
        if kind == "image"
    }
    return tags | {OVERVIEW}


def test_every_picture_has_a_healthy_and_an_ill_example() -> None:
    promised_tags = pictures_of_all()
    assert len(promised_tags) > 20
    for tag in promised_tags - set(ALIKE):
        assert any(pattern(tag).match(shown) for shown in PATHS.values()), tag
    for tag, why in ALIKE.items():
        assert tag in promised_tags
        assert f"`{tag}`" in GUIDE, why


def test_the_guide_shows_the_pictures_of_the_script() -> None:
    assert set(SHOWN) == set(PATHS)
    assert len(PATHS) == len(script.PAIRS)
    assert {path.name for path in (EXAMPLES / "guide").iterdir()} == set(SHOWN)
    for pair in script.PAIRS:
        words = f"Healthy: {pair.good}; ill: {pair.bad}"
        assert SHOWN[pair.file].replace("\n", " ") == words


def test_the_pictures_are_small_and_of_one_size() -> None:
    sizes = [(EXAMPLES / "guide" / name).stat().st_size for name in PATHS]
    assert max(sizes) <= 60_000
    assert sum(sizes) <= 1_200_000
    for name in PATHS:
        with Image.open(EXAMPLES / "guide" / name) as image:
            assert image.size == (1304, 470)


def test_each_picture_tells_what_it_shows_how_to_read_it_and_what_to_do() -> None:
    for section in re.split(r"^## ", GUIDE, flags=re.MULTILINE):
        if "](guide/" in section:
            parts = re.findall(r"^\*\*(.*?)\.\*\*", section, re.MULTILINE)
            assert parts == ["What it shows", "How to read it", "What to do"], section[:20]
            (path,) = re.findall(r"\]\(guide/(.*?)\)", section)
            named = re.findall(r"`([a-z_]+/[\w/<>]+)`", section)
            assert any(pattern(tag).match(PATHS[path]) for tag in named), section[:20]


def test_each_callback_leads_to_its_pictures() -> None:
    lines = re.findall(r"^\| .* \| `(\w+)` \| .* \|$", GUIDE, re.MULTILINE)
    (sentence,) = re.findall(r"^(.*) log numbers", GUIDE, re.MULTILINE)
    without = re.findall(r"`(\w+)`", sentence)
    public = [getattr(ncp, name) for name in dir(ncp)]
    classes = {c for c in public if isinstance(c, type) and issubclass(c, ncp.Callback)}
    assert sorted([*lines, *without]) == sorted(c.__name__ for c in classes - {ncp.Callback})
    for name in without:
        assert "image" not in promised(getattr(ncp, name)).values()


def test_the_notebook_leads_to_the_guide() -> None:
    notebook = (EXAMPLES / "interpret.ipynb").read_text()
    headings = {
        heading.lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", GUIDE, re.MULTILINE)
    }
    links = re.findall(r"\(guide\.md(?:#([\w-]+))?\)", notebook)
    assert len(links) >= 4
    assert set(links) - {""} <= headings


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return where the guide's command has run, in a reduced form, and what it printed."""
    where = tmp_path_factory.mktemp("guide")
    (command,) = re.findall(r"^python (examples/guide\.py)$", GUIDE, re.MULTILINE)
    done = subprocess.run(
        [sys.executable, EXAMPLES.parent / command, "--steps", "1"],
        cwd=where, check=True, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    return where, done.stdout


def test_the_script_makes_every_picture(ran: tuple[Path, str]) -> None:
    where, printed = ran
    made = where / "runs" / "guide" / "pictures"
    assert {path.name for path in made.iterdir()} == set(PATHS)
    for path in made.iterdir():
        with Image.open(path) as image:
            assert image.size == (1304, 470)
    for name in script.RUNS:
        assert re.search(rf"^{name} +\w", printed, re.MULTILINE)


def test_every_picture_in_the_logs_is_in_the_guide(ran: tuple[Path, str]) -> None:
    where, _ = ran
    logged = {tag for name in script.RUNS for tag in read_run(where / "runs/guide" / name).images}
    assert len(logged) >= len(set(PATHS.values()))
    known = [
        tag for tag in pictures_of_all()
        if tag in ALIKE or any(map(pattern(tag).match, PATHS.values()))
    ]  # fmt: skip
    missing = [tag for tag in logged if not any(pattern(each).match(tag) for each in known)]
    assert not missing


def test_the_run_card_names_the_guide(ran: tuple[Path, str]) -> None:
    where, _ = ran
    cards = read_run(where / "runs/guide/healthy").texts["monitor/run"]
    title = GUIDE.splitlines()[0].removeprefix("# ")
    assert f"“{title}”, examples/guide.md" in cards[max(cards)]
