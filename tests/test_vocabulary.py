"""Test that retired words are gone from code, messages and text."""

from __future__ import annotations

from pathlib import Path

import pytest
from vocabulary import RETIRED, ROOT, Retired, files, hits, words

# Files and folders (with a slash at the end) that still use retired words. To be emptied.
NOT_YET = (
    "benchmarks/",
    # It lists keywords of users' models, which are theirs.
    "ncp_callbacks/model/conventions.py",
)


def covers(entry: str, path: Path) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return name.startswith(entry) if entry.endswith("/") else name == entry


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
    [path for path in files() if not any(covers(entry, path) for entry in NOT_YET)],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_no_retired_word(path: Path) -> None:
    found = [f"{hit.line}: {hit.text!r}: use {hit.word.use}" for hit in hits(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("entry", NOT_YET)
def test_the_list_of_files_shrinks(entry: str) -> None:
    texts = [path.read_text() for path in files() if covers(entry, path)]
    assert any(any(hits(text)) for text in texts), f"remove {entry!r} from NOT_YET"
