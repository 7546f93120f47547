"""A document as plain text for a terminal, or as Markdown."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence

from .document import Block, Heading, Items, Paragraph, Table

__all__ = ["markdown", "plain"]

_GAP = "  "
_LEAST_FIRST = 16  # Characters that a table's first column keeps.
_PROSE = 100
_TAGS = functools.partial(
    textwrap.TextWrapper, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
)


def plain(blocks: Sequence[Block], width: int | None = None) -> str:
    """Aligned text, at most ``width`` characters wide as far as tables can be."""
    prose = min(width or _PROSE, _PROSE)
    parts: list[str] = []
    for number, block in enumerate(blocks):
        if isinstance(block, Heading):
            text = f"{block.text}\n{('=' if number == 0 else '-') * min(len(block.text), prose)}"
            parts.append(text if number == 0 else f"\n{text}")
        elif isinstance(block, Paragraph):
            parts.append("\n" + textwrap.fill(block.text, prose))
        elif isinstance(block, Items):
            text = f"{block.title} ({len(block.items)}): {', '.join(block.items)}"
            parts.append("\n" + _TAGS(width=prose).fill(text))
        else:
            before = "" if parts and isinstance(blocks[number - 1], Heading) else "\n"
            parts.append(before + _plain_table(block, width))
    return "\n".join(parts) + "\n"


def _plain_table(table: Table, width: int | None) -> str:
    columns = list(range(len(table.header)))
    cells = [table.header, *(row for row in table.rows if len(row) > 1)]
    wide = [max(len(row[c]) for row in cells) for c in columns]

    def total() -> int:
        return sum(wide[c] for c in columns) + len(_GAP) * (len(columns) - 1)

    for spare in table.spare:
        if width is not None and total() > width:
            columns.remove(spare)
    if width is not None and total() > width:
        wide[0] = max(_LEAST_FIRST, wide[0] - (total() - width))
    lines = []
    for row in (table.header, *table.rows):
        if len(row) == 1:
            lines.append(_shortened(row[0], width or len(row[0])))
            continue
        texts = [_shortened(row[0], wide[0]), *row[1:]]
        padded = [
            texts[c].ljust(wide[c]) if table.align[c] == "l" else texts[c].rjust(wide[c])
            for c in columns
        ]
        lines.append(_GAP.join(padded).rstrip())
    return "\n".join(lines)


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    kept = max(0, width - 2)
    # The end of a tag tells more than its middle.
    return f"{text[: kept // 2]}..{text[len(text) - (kept - kept // 2) :]}"


def markdown(blocks: Sequence[Block]) -> str:
    """Markdown with tables as GitHub shows them."""
    parts = []
    for number, block in enumerate(blocks):
        if isinstance(block, Heading):
            parts.append(f"{'#' if number == 0 else '##'} {_escaped(block.text)}")
        elif isinstance(block, Paragraph):
            parts.append(_escaped(block.text))
        elif isinstance(block, Items):
            tags = ", ".join(f"`{item}`" for item in block.items)
            parts.append(f"{_escaped(block.title)} ({len(block.items)}): {tags}")
        else:
            parts.append(_markdown_table(block))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rule = ["---" if a == "l" else "---:" for a in table.align]
    lines = [_row(table.header), "|" + "|".join(rule) + "|"]
    for row in table.rows:
        if len(row) == 1:
            lines.append(_row((f"**{row[0]}**", *("" for _ in table.header[1:])), escape=False))
        else:
            lines.append(_row(row))
    return "\n".join(lines)


def _row(cells: Sequence[str], *, escape: bool = True) -> str:
    texts = [_escaped(c.strip()) if escape else c.replace("|", r"\|") for c in cells]
    return "| " + " | ".join(texts) + " |"


def _escaped(text: str) -> str:
    for mark in ("\\", "|", "*", "_", "<", "`", "["):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
