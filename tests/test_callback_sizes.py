"""Test that the classes of the shipped callbacks stay short: the analysis is elsewhere."""

from __future__ import annotations

import ast
import inspect
import io
import statistics
import textwrap
import tokenize

import ncp_callbacks as ncp
from ncp_callbacks import callbacks

SHIPPED = [
    kind
    for name in callbacks.__all__
    if isinstance(kind := getattr(ncp, name), type)
    and issubclass(kind, ncp.Callback)
    and kind is not ncp.Callback
]
# Tokens that make no line of code.
_EMPTY = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(source: str) -> int:
    """Return the number of lines of code, without docstrings, comments and blank lines."""
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in _EMPTY
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def test_lines_are_counted_as_a_reader_counts_them() -> None:
    source = '''
    class A:
        """Two lines

        of a docstring."""

        x = 1  # A comment beside code.
        # A comment alone.

        def f(self):
            """One line."""
            text = """a string
            of two lines"""
            return (
                text
            )
    '''
    # class, x, def, two of the text, three of the return.
    assert code_lines(textwrap.dedent(source)) == 8


def test_callback_classes_are_short() -> None:
    sizes = {kind.__name__: code_lines(inspect.getsource(kind)) for kind in SHIPPED}
    assert len(sizes) == 21
    assert statistics.median(sizes.values()) <= 60, sizes
