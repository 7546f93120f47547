"""Count the docstrings of functions that begin with a verb.

::

    python tests/docstring_heads.py          # the share by folder
    python tests/docstring_heads.py --list   # and every head without a verb

``D401`` of ruff lets every word pass that it does not know, nouns included. Here a head begins with
a verb if its first word stands in :data:`VERBS`, a closed list: add a verb that is missing.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ncp_callbacks"

# Words that are nouns as often as verbs, such as "change" or "share", are left out on purpose.
VERBS = frozenset(
    """
    abort accept accumulate adapt add adjust advance aggregate align allocate allow analyse
    analyze annotate append apply approximate ask assemble assert assign attach attribute
    average avoid backpropagate begin bind bisect blend block blur bring broadcast build cache
    calculate call capture carry cast catch centre choose clean clear clip close collapse
    collect colour combine compare compile complete compress compute concatenate configure
    confirm connect consume contain continue control convert copy correct count cover create
    crop cut decide declare decode decompose decorate deduplicate defer define delegate delete
    deliver derive describe detach detect determine differentiate disable discard disconnect
    display divide do document download downsample draw drop dump emit empty enable encode
    enforce enqueue ensure enter enumerate escape estimate evaluate evict exclude execute exit
    expand explain export extend extract extrapolate fail feed fetch fill filter finalise find
    finish fit flatten flush fold follow forbid force forget format forward free freeze gather
    generate get give group grow guard guess handle have hide highlight hold identify ignore
    implement import include increase infer inform initialise initialize insert inspect install
    integrate interleave interpolate interpret introduce invert invoke iterate join keep kill
    label launch lay leave let lift list load locate lock log lower make map mark mask match
    measure memoise merge minimise mirror move multiply name negate normalise normalize notify
    observe obtain offer open order overwrite pack pad paint parametrise parse partition pass
    patch pause perform permute perturb pick place plan play poll pool pop prepare prepend
    present preserve prevent print probe process produce project promise propagate protect
    provide prune publish pull purge push put quantise query quote raise randomise randomize
    rank reach read rebuild recognise reconstruct record recover redraw reduce refer refine
    refresh refuse register reject release reload remember remove rename render reorder repeat
    replace report represent request require resample rescale reserve reset reshape resize
    resolve respond restore resume retain retry return reuse reverse rewrite round run sample
    save say scale scan search select send separate serialise serve set shade shift shorten show
    shrink shuffle shut simulate skip slice smooth solve sort spawn specify split spread stack
    start steer stop store strip submit subsample subtract suggest sum summarise summarize
    supply suspend swap switch synchronise take tell terminate test throw tile toggle trace
    track train transform translate transpose traverse treat trim truncate try turn undo unfold
    unfreeze uninstall unpack unwrap update upload use validate verify visit visualise visualize
    wait wake walk warn watch weigh widen wrap write yield zero zip
    """.split()  # noqa: SIM905
)  # fmt: skip
# "Total of …", "Score of …": then the word is a noun.
_NOUN = re.compile(r"\w+ (of|in|per|from each|by)\b")
_MARKUP = re.compile(r":\w+:|[`*\"'(]")


class Head(NamedTuple):
    """The first line of a function's docstring and where it stands."""

    path: Path
    line: int
    function: str
    text: str

    @property
    def has_verb(self) -> bool:
        """Return whether the line begins with a verb in its base form."""
        text = _MARKUP.sub("", self.text).strip()
        word = re.match(r"[\w-]+", text)
        return word is not None and word[0].lower() in VERBS and not _NOUN.match(text)


def heads(folder: Path = PACKAGE) -> Iterator[Head]:
    """Yield the heads of all functions and methods below a folder, private ones included."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield Head(path, node.lineno, node.name, text.splitlines()[0])


def share(found: list[Head]) -> float:
    """Return the share of the heads that begin with a verb."""
    return sum(head.has_verb for head in found) / len(found)


def main() -> None:
    """Print the share by folder and, with ``--list``, the heads without a verb."""
    found = list(heads())
    folders = sorted({head.path.parent for head in found})
    for folder in folders:
        inside = [head for head in found if head.path.parent == folder]
        print(f"{share(inside):6.1%} of {len(inside):4}  {folder.relative_to(ROOT)}")
    print(f"{share(found):6.1%} of {len(found):4}  in all")
    if "--list" in sys.argv:
        for head in found:
            if not head.has_verb:
                print(f"{head.path.relative_to(ROOT)}:{head.line}: {head.function}: {head.text}")


if __name__ == "__main__":
    main()
