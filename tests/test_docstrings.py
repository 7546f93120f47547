"""Test that the docstrings of functions begin with a verb."""

from __future__ import annotations

from pathlib import Path

import pytest
from docstring_heads import Head, heads, share

# Some verbs are not recognised, such as "pickle" or "bound".
REACHED = 0.95


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return the mean.", True),
        ("Draw ``values`` as a heat map.", True),
        ("``compute`` it", True),
        ("The mean of the values.", False),
        ("Whether the model has cells.", False),
        ("Returns the mean.", False),
        ("Score of each feature.", False),
        ("Mean over sequences.", False),
        ("``(B, T)`` to ``(B,)``.", False),
        ("", False),
    ],
)
def test_a_head_with_a_verb(text: str, expected: bool) -> None:
    assert Head(Path("a.py"), 1, "f", text).has_verb == expected


def test_heads_are_those_of_functions_and_methods(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        'class A:\n    """No head."""\n    def f(self):\n        """Do it.\n\n        Rest."""\n'
        "    async def g(self):\n        '''The thing.'''\n    def h(self): ...\n"
    )
    found = list(heads(tmp_path))
    assert [(h.function, h.text) for h in found] == [("f", "Do it."), ("g", "The thing.")]
    assert share(found) == 0.5


def test_heads_begin_with_a_verb() -> None:
    found = list(heads())
    assert len(found) > 300
    missing = [f"{h.path.name}:{h.line}: {h.text}" for h in found if not h.has_verb]
    assert share(found) >= REACHED, "\n".join(missing[:50])
