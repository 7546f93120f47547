"""Find the files of the interactive page."""

from __future__ import annotations

from importlib.resources import files

__all__ = ["MODULES", "START", "module_text"]

START = "start.js"
"""The module with which the page of a server begins."""

# In an order in which each comes after those that it imports.
MODULES = (
    "math.js",
    "draw.js",
    "source.js",
    "state.js",
    "style.js",
    "views/common.js",
    "views/findings.js",
    "views/attribution.js",
    "views/shares.js",
    "views/time.js",
    "views/states.js",
    "views/units.js",
    "views/table.js",
    "index.js",
)


def module_text(name: str) -> str:
    """Return the text of a module of the page.

    Args:
        name: One of :data:`MODULES`.

    Raises:
        KeyError: There is no such module.
    """
    if name not in MODULES and name != START:
        raise KeyError(name)
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")
