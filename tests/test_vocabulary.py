"""Test that retired words are gone from code, messages and text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from vocabulary import RETIRED, ROOT, Retired, files, hits, words


@pytest.mark.parametrize("word", RETIRED, ids=lambda word: word.found)
def test_each_word_is_found_and_nothing_else(word: Retired) -> None:
    assert word in [hit.word for hit in hits(word.found)]
    assert word not in [hit.word for hit in hits(word.allowed)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\ntime_interval = 2\n", 2),
        ("class TimeInterval:\n", 1),
        ("MAX_INTERVALS = 3\n", 1),
        ('raise ValueError("the interval is negative")\n', 1),
        ("# What isn't there is left\n# out.\n", 1),
        ('def f():\n    """Return it.\n\n    What isn\'t there is left\n    out."""\n', 4),
        ("# A confidence\n# interval and an interval\n", 2),
    ],
)
def test_words_are_found_in_names_messages_and_over_lines(text: str, line: int) -> None:
    assert [hit.line for hit in hits(text)] == [line]


def test_words_of_identifiers() -> None:
    text = words("maxTimeInterval _private __init__ a-b x_1")
    assert text.split() == ["max", "Time", "Interval", "private", "init", "a", "b", "x", "1"]


@pytest.mark.parametrize(
    "path",
    files(),
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_no_retired_word(path: Path) -> None:
    found = [f"{hit.line}: {hit.text!r}: use {hit.word.use}" for hit in hits(path.read_text())]
    assert not found, "\n".join(found)


def test_keywords_of_users_models_are_theirs() -> None:
    assert not list(hits('KEYWORDS = ("dt", "intervals", "time_intervals")'))
    assert list(hits('raise ValueError("pass intervals")'))
    assert list(hits("time_intervals = 1"))


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_no_retired_word_in_the_names_of_tests(path: Path) -> None:
    names = re.findall(r"^\s*(?:def|class) (\w+)", path.read_text(), re.MULTILINE)
    own = [name for name in (path.stem, *names) if name.lower().startswith("test")]
    found = {name: hit.word.use for name in own for hit in hits(name)}
    assert not found, found
