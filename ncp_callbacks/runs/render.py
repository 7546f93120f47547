"""Render sections as plain text for a terminal, or as Markdown.

Names and tags come from files of others: characters that a terminal would obey are escaped.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from .document import Section, Table, Tags

__all__ = ["markdown", "plain", "printable"]

_GAP = "  "
_LEAST_FIRST = 16  # Characters that a table's first column keeps.
_PROSE = 100


def printable(text: str) -> str:
    """Return the text with control characters, newlines and bidi overrides escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def plain(sections: Sequence[Section], width: int | None = None) -> str:
    """Return aligned text, at most ``width`` characters wide as far as tables can be."""
    prose = min(width or _PROSE, _PROSE)
    blocks = []
    for number, section in enumerate(sections):
        title = printable(section.title)
        heading = f"{title}\n{('-' if number else '=') * min(len(title), prose)}"
        parts = [
            _plain_table(part, width) if isinstance(part, Table) else _prose(part, prose)
            for part in section.parts
        ]
        # A table stands right below its heading.
        gap = "\n" if isinstance(section.parts[0], Table) else "\n\n"
        blocks.append(f"{heading}{gap}" + "\n\n".join(parts))
    return "\n\n\n".join(blocks) + "\n"


def _prose(part: str | Tags, width: int) -> str:
    if isinstance(part, str):
        return textwrap.fill(printable(part), width)
    tags = ", ".join(map(printable, part.tags))
    return textwrap.fill(
        f"{printable(part.title)} ({len(part.tags)}): {tags}", width,
        subsequent_indent="    ", break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _plain_table(table: Table, width: int | None) -> str:
    header, *rows = ([printable(cell) for cell in row] for row in (table.header, *table.rows))
    columns = list(range(len(header)))
    wide = [max(len(row[c]) for row in [header, *rows] if len(row) > 1) for c in columns]

    def excess() -> int:
        total = sum(wide[c] for c in columns) + len(_GAP) * (len(columns) - 1)
        return total - (total if width is None else width)

    for spare in table.spare:
        if excess() > 0:
            columns.remove(spare)
    wide[0] = min(wide[0], max(_LEAST_FIRST, wide[0] - excess()))
    lines = []
    for row in (header, *rows):
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


def markdown(sections: Sequence[Section]) -> str:
    """Return Markdown with tables as GitHub shows them."""
    parts = []
    for number, section in enumerate(sections):
        parts.append(f"{'##' if number else '#'} {_escaped(section.title)}")
        for part in section.parts:
            if isinstance(part, str):
                parts.append(_escaped(part))
            elif isinstance(part, Tags):
                tags = ", ".join(map(_escaped, part.tags))
                parts.append(f"{_escaped(part.title)} ({len(part.tags)}): {tags}")
            else:
                parts.append(_markdown_table(part))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rest = [""] * (len(table.header) - 1)
    rows = [
        [f"**{_escaped(row[0])}**", *rest] if len(row) == 1 else map(_escaped, row)
        for row in table.rows
    ]
    rule = "|".join("---" if a == "l" else "---:" for a in table.align)
    return "\n".join([_row(map(_escaped, table.header)), f"|{rule}|", *map(_row, rows)])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*_<`\[~&])", r"\\\1", printable(text.strip()))
