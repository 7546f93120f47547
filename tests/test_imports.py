"""Test the imports: public names are lazy, logs are read without MLX, there is no circle."""

from __future__ import annotations

import ast
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import mypy.api
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.writers import TensorBoardWriter

PACKAGE = Path(ncp.__file__).parent
FACADES = (
    "ncp_callbacks",
    "ncp_callbacks.callbacks",
    "ncp_callbacks.analysis",
    "ncp_callbacks.plots",
)
# They run within TensorBoard, or start it, and import its modules; it is an extra of the package.
WITH_TENSORBOARD = {
    "ncp_callbacks.view.tab", "ncp_callbacks.view.provider", "ncp_callbacks.open_command",
}  # fmt: skip
HEAVY = ("mlx", "matplotlib", "sklearn", "scipy", "tensorboardX")
# Import names that differ from the name of the distribution.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "google": "protobuf", "PIL": "pillow"}


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- lazy names


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = run("import sys, ncp_callbacks; print(*sys.modules)").split()
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)
    assert not [n for n in loaded if n.startswith(("ncp_callbacks.runs", "ncp_callbacks.monitor"))]


@pytest.mark.parametrize("package", FACADES)
def test_every_public_name_can_be_had(package: str) -> None:
    module = sys.modules[package] if package in sys.modules else __import__(package, fromlist="x")
    assert len(module.__all__) == len(set(module.__all__)) > 10
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is getattr(module, name)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018
    assert not hasattr(module, "nonsense")


@pytest.mark.parametrize("package", FACADES)
def test_no_public_name_is_the_name_of_a_module(package: str) -> None:
    # Importing the module would put it in the place of the name.
    folder = PACKAGE.parent / package.replace(".", "/")
    modules = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir()}
    assert not modules & set(sys.modules[package].__all__)


def test_star_import_dir_and_modules() -> None:
    names: dict[str, object] = {}
    exec("from ncp_callbacks import *", names)
    assert names["Monitor"] is ncp.Monitor
    assert {n for n in names if not n.startswith("__")} == set(ncp.__all__)
    assert {"Monitor", "runs", "plots", "analysis", "models", "__version__"} <= set(dir(ncp))
    code = "import ncp_callbacks as n; print(n.runs.read_run, n.models.CfC, n.analysis)"
    assert "ncp_callbacks.analysis" in run(code)


def test_pickling_by_name() -> None:
    for value in (ncp.HeldOutBatch, ncp.compare_runs, ncp.plot_dynamics, ncp.Scalar("a/b", 1.0)):
        assert pickle.loads(pickle.dumps(value)) == value
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).tag)"
    assert run(code, pickle.dumps(ncp.Scalar("a/b", 1.0)).hex()) == "a/b\n"


def test_type_checkers_see_the_names(tmp_path: Path) -> None:
    source = tmp_path / "user.py"
    source.write_text(
        "import ncp_callbacks as ncp\n"
        "from ncp_callbacks import *\n"
        "reveal_type(ncp.every)\nreveal_type(ncp.Dynamics.name)\nreveal_type(plot_dynamics)\n"
        "reveal_type(ncp.runs.read_run)\nncp.nonsense\n"
    )
    out, _, _ = mypy.api.run(["--strict", "--cache-dir", str(tmp_path / "cache"), str(source)])
    revealed = re.findall(r'Revealed type is "(.+)"', out)
    assert len(revealed) == 4, out
    assert not [r for r in revealed if r == "Any"]
    assert 'has no attribute "nonsense"' in out


# --- readers of logs

BLOCKED = """
import sys

class Block:
    names = {"mlx", "matplotlib"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two runs; the loss of the second is half that of the first."""
    folders = [tmp_path_factory.mktemp("logs") / name for name in ("one", "two")]
    for number, folder in enumerate(folders, start=1):
        writer = TensorBoardWriter(folder)
        for step in range(1, 5):
            writer.write(step, [ncp.Scalar("val/loss", 2.0**-step / number)])
        writer.close()
    return [str(folder) for folder in folders]


def test_logs_are_read_without_mlx_and_matplotlib(logs: list[str]) -> None:
    code = BLOCKED + (
        "import ncp_callbacks as ncp\n"
        "scalars = ncp.runs.read_run(sys.argv[1]).scalars['val/loss']\n"
        "print(scalars.steps.tolist(), scalars.values.tolist())\n"
    )
    assert run(code, logs[0]) == "[1, 2, 3, 4] [0.5, 0.25, 0.125, 0.0625]\n"


def test_the_command_line_compares_without_mlx_and_matplotlib(logs: list[str]) -> None:
    code = BLOCKED + "from ncp_callbacks.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    assert "val/loss" in run(code, "compare", *logs)


def test_reports_with_pictures_need_no_mlx(logs: list[str], tmp_path: Path) -> None:
    code = BLOCKED + (
        "Block.names = {'mlx'}\nfrom ncp_callbacks.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    run(code, "compare", *logs, "--out", str(tmp_path / "report"))
    assert "<img" in (tmp_path / "report" / "compare.html").read_text()


# --- the graph of imports


def modules() -> dict[str, Path]:
    """Return the file of each module of the package, by its name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield import statements, those in functions included, without those for type checkers."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test).endswith("TYPE_CHECKING"):
        tree = ast.Module(tree.body if isinstance(tree.test, ast.UnaryOp) else tree.orelse, [])
    if isinstance(tree, ast.Import | ast.ImportFrom):
        yield tree
    for node in ast.iter_child_nodes(tree):
        yield from statements(node)


def targets(name: str, path: Path, source: str, known: set[str]) -> set[str]:
    """Return the names of the modules that a module imports, of other packages too."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found = set()
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = node.module or ""
        if node.level:
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parts, *([base] if base else [])])
        for alias in node.names:
            submodule = f"{base}.{alias.name}"
            found.add(submodule if submodule in known else base)
    return found - {name}


def graph() -> dict[str, set[str]]:
    """Return, by module, the modules of the package that it imports, at once or later.

    The names that a stub declares are imported later by the package.
    """
    files = modules()
    edges = {}
    for name, path in files.items():
        sources = [path.read_text()]
        stub = path.with_suffix(".pyi")
        sources += [stub.read_text()] if stub.exists() else []
        edges[name] = set().union(*(targets(name, path, s, set(files)) for s in sources))
    return edges


def circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the groups of nodes that reach one another."""
    reach: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for node in edges.get(waiting.pop(), ()):
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
        reach[start] = seen
    return {
        frozenset(other for other in edges if other in reach[start] and start in reach[other])
        for start in edges
        if start in reach[start]
    }


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}
    assert circles(edges) == {frozenset("bc"), frozenset("d")}
    source = (
        "if TYPE_CHECKING:\n    from . import types\nelse:\n    from .b import x\n"
        "def later():\n    from ..c import y\n    import numpy.linalg\n    from . import d\n"
    )
    found = targets("p.q.a", Path("a.py"), source, {"p.q.b", "p.c", "p.q.d", "p.q.types"})
    assert found == {"p.q.b", "p.c", "numpy.linalg", "p.q.d"}


def test_no_module_is_imported_by_what_it_imports() -> None:
    assert circles(graph()) == set()


def room(module: str) -> str:
    """Return the folder of a module, or the module itself where it is in no folder."""
    return ".".join(module.split(".")[:2])


def test_no_folder_is_imported_by_what_it_imports() -> None:
    edges: dict[str, set[str]] = {}
    for name, imported in graph().items():
        if name not in FACADES:
            inside = {room(other) for other in imported if other.startswith("ncp_callbacks.")}
            edges.setdefault(room(name), set()).update(inside - {room(name)})
    assert len(edges) > 50
    assert circles(edges) == set()


def rows() -> dict[str, int]:
    """Return the row of each folder and module in the table of the contributor's guide."""
    guide = (PACKAGE.parent / ".github" / "CONTRIBUTING.md").read_text()
    table = guide[guide.index("| folder or module") : guide.index("A module imports only")]
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    return {
        name.removesuffix("<name>/").removesuffix("/").removesuffix(".py"): number
        for number, cell in enumerate(cells)
        for name in re.findall(r"`([^`]+)`", cell)
    }


def test_the_table_of_the_guide_names_every_folder_and_module() -> None:
    own = {p.stem for p in PACKAGE.glob("*.py")} | {
        p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()
    }
    # A new one belongs in a row of the table in .github/CONTRIBUTING.md, above what it imports.
    assert set(rows()) == own - {"__init__", "_lazy"}


def test_modules_import_what_stands_below_them_in_the_table_of_the_guide() -> None:
    place = rows()
    above = {
        (name, other)
        for name, imported in graph().items()
        for other in imported - set(FACADES)
        if name not in FACADES and other.startswith("ncp_callbacks.")
        if place.get(name.split(".")[1], 0) > place.get(other.split(".")[1], len(place))
    }
    assert above == set()


def test_facades_are_for_users_only() -> None:
    found = {name for name, imported in graph().items() if imported & set(FACADES)}
    assert found - set(FACADES) == {"ncp_callbacks.notebook"}


def test_the_package_imports_what_it_declares() -> None:
    files = modules()
    imported = set().union(
        *(
            targets(name, path, path.read_text(), set(files))
            for name, path in files.items()
            if name not in WITH_TENSORBOARD
        )
    )
    top = {name.split(".")[0] for name in imported} - {"ncp_callbacks"} - sys.stdlib_module_names
    declared = {
        re.split(r"[^\w-]", line)[0].lower()
        for line in requires("ncp-callbacks") or []
        if "extra ==" not in line
    }
    assert {DISTRIBUTIONS.get(name, name).lower() for name in top} <= declared
    assert "ncps" not in declared
