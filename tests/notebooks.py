"""Notebooks without Jupyter: cells are run in order, and their outputs kept as Jupyter keeps them.

python tests/notebooks.py examples/interpret.ipynb      # run it, and keep what it shows
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image


def run(notebook: dict[str, Any], names: dict[str, Any]) -> None:
    """Run the code cells in ``names`` and put what they show into the notebook.

    Lines that begin with % are commands to Jupyter, and left out.
    """
    for number, cell in enumerate(c for c in notebook["cells"] if c["cell_type"] == "code"):
        lines = "".join(cell["source"]).split("\n")
        source = "\n".join("" if line.startswith("%") else line for line in lines)
        parsed = ast.parse(source, f"cell {number + 1}")
        shown = None
        if parsed.body and isinstance(parsed.body[-1], ast.Expr):
            shown = ast.Expression(parsed.body.pop().value)  # type: ignore[attr-defined]
        printed, value = io.StringIO(), None
        with contextlib.redirect_stdout(printed):
            exec(compile(parsed, f"<cell {number + 1}>", "exec"), names)
            if shown is not None:
                value = eval(compile(shown, f"<cell {number + 1}>", "eval"), names)
        cell["execution_count"] = number + 1
        cell["outputs"] = list(_outputs(printed.getvalue(), value, number + 1))


def _outputs(printed: str, value: Any, number: int) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    if printed:
        text = printed.splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
        if isinstance(value, Figure):
            data = {"image/png": _png(value), "text/plain": ["<Figure>"]}
        outputs.append(
            {"data": data, "execution_count": number, "metadata": {},
             "output_type": "execute_result"}
        )  # fmt: skip
    return outputs


def _png(figure: Figure) -> str:
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True
    )
    return base64.b64encode(small.getvalue()).decode()


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def main(path: Path) -> None:
    notebook = read(path)
    run(notebook, {"__name__": "__main__"})
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
