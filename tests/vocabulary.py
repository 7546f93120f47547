"""Find words that the project retired: one thing has one word, in code, messages and text.

::

    python tests/vocabulary.py [PATH ...]    # every retired word, its place, the word to use

Identifiers are read as words too: ``time_interval`` and ``TimeInterval`` hold "interval".
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Retired(NamedTuple):
    """A pattern of a retired word, the word to use, and a sentence in which the pattern is found.

    ``allowed`` is a sentence with a use of the word that stays.
    """

    pattern: str
    use: str
    found: str
    allowed: str = ""


# Words that are wrong in one meaning only cannot be found by a pattern and are not listed: "row"
# or "sample" for a sequence, "step" for a time step, "say" or "see" for reporting and analysing.
RETIRED = (
    Retired(r"look(s|ed|ing)?(?! ?up)", "snapshot, analysis", "at each look", "look up a name"),
    Retired(r"instruments?", "Observer", "the Instrument of a model"),
    Retired(r"probes?", "Observer", "probe.py"),
    Retired(
        r"(?<!confidence )intervals?",
        "time_delta, elapsed time; ci",
        "one interval per step",
        "a confidence interval",
    ),
    Retired(r"bands?", "ci; custom scalars", "the band of a curve", "broadband"),
    Retired(r"ow(e|es|ed|ing)(?! to)|owed", "attributed to", "what it owes", "owing to noise"),
    Retired(r"nodes", "n_steps, n_samples", "most nodes", "one node of a tree"),
    Retired(r"(?<![a-z] )most (?=\w+ ?=)", "max_", "(most_nodes=64)", "at most 8"),
    Retired(r"(cell )?sites?(?! packages)", "hook point", "CellSite", "site-packages"),
    Retired(
        r"chains?(?! rule|\.from|\()", "recurrence", "the chain of states", "by the chain rule"
    ),
    Retired(r"replay(s|ed|ing)? of (a|the) cell", "cell stepper", "Replay of a cell", "a replay"),
    Retired(r"settle(s|d)?", "evaluate pending arrays", "settle(arrays)"),
    Retired(r"undisturbed", "preserve", "undisturbed(model)"),
    Retired(r"abreast|lanes", "parallel", "run abreast"),
    Retired(r"further", "extra passes, another", "further passes"),
    Retired(r"pumps?", "background writer", "the pump's queue"),
    Retired(r"studio|drawers?|sheets?", "renderer", "a Sheet of a drawer", "a worksheet"),
    Retired(r"(?<!time )stamps?", "renderer", "a text stamp", "time stamp"),
    Retired(r"announce(s|d|ment)?", "console summary", "announce the run"),
    Retired(r"nothing to observe", "NotApplicable, not applicable", "NothingToObserve"),
    Retired(r"dear", "expensive", "what is dear"),
    Retired(r"mend(s|ed|ing)?", "fix", "how to mend it", "amend"),
    Retired(r"left out|leaves? out|leaving out", "skipped, without", "it is left out"),
    Retired(r"said|told", "reported, logged", "is told once", "unsaid"),
    Retired(r"indicative", "small batch", "intervals are indicative"),
    Retired(r"(?<=[:;,] )give|(?<=or )give", "pass, set", "no batch: give one", "would give 0"),
    Retired(r"changes? of ranks?", "paired change", "the change of ranks"),
    Retired(r"likewise|and (its|the) like", "(write it out)", "the targets likewise"),
)  # fmt: skip
# Keywords of users' models, which are theirs.
_KEYWORDS = re.compile(r"""["'](time_)?intervals["']""")
_PATTERNS = [re.compile(rf"\b(?:{word.pattern})\b", re.IGNORECASE) for word in RETIRED]


class Hit(NamedTuple):
    """A retired word in a line of a file."""

    line: int
    text: str
    word: Retired


def words(text: str) -> str:
    """Return a text with its identifiers split into words, line by line."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    return re.sub(r"[_\-]+(?=\w)|(?<=\w)_+", " ", text)


def hits(text: str) -> Iterator[Hit]:
    """Yield the retired words of a text; a phrase may go on in the next line."""
    # Margins of comments, blanks and line ends are one blank each, as many as there are lines.
    split = words(_KEYWORDS.sub("", text))
    flat = re.sub(r"\n[ \t]*(#:? )?", lambda m: "\n", split)
    starts = [match.end() for match in re.finditer("\n", flat)]
    joined = flat.replace("\n", " ")
    for word, pattern in zip(RETIRED, _PATTERNS, strict=True):
        for match in pattern.finditer(joined):
            number = sum(start <= match.start() for start in starts)
            yield Hit(number + 1, match[0], word)


def files() -> list[Path]:
    """Return the files whose words are checked: package, examples and documents."""
    found = [
        ROOT / "README.md",
        *(ROOT / ".github").glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
    ]
    for folder in ("ncp_callbacks", "examples", "benchmarks"):
        found += sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".pyi"))
    return found


def main() -> None:
    """Print the retired words of the files passed, or of all that are checked."""
    paths = [Path(argument).resolve() for argument in sys.argv[1:]]
    paths = [q for p in paths for q in (sorted(p.rglob("*.py")) if p.is_dir() else [p])]
    for path in paths or files():
        for hit in sorted(hits(path.read_text()), key=lambda hit: hit.line):
            print(f"{path.relative_to(ROOT)}:{hit.line}: {hit.text!r}: use {hit.word.use}")


if __name__ == "__main__":
    main()
