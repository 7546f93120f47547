"""Test that the source distribution holds all that its tests need, without the network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOP_LEVEL = ("ncp_callbacks", "tests", "examples", "benchmarks", ".ci", ".github")


def expected() -> set[str]:
    """Return the files that git tracks or, outside a repository, those of an unpacked sdist."""
    if (ROOT / ".git").exists():
        git = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
        done = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True)
        return {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}
    files = [path for top in TOP_LEVEL for path in (ROOT / top).rglob("*") if path.is_file()]
    names = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    return names | {
        "README.md",
        "LICENSE",
        "pyproject.toml",
        ".gitignore",
        ".pre-commit-config.yaml",
    }


def test_the_source_distribution_is_the_repository(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (archive,) = tmp_path.glob("ncp_callbacks-*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert len(expected()) > 150
    assert expected() <= names
    assert not [name for name in names if name.startswith((".venv/", "runs/", ".git/"))]


def test_the_wheel_holds_the_package_only(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "ncp_callbacks", tmp_path / "ncp_callbacks")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "unpacked", "zip")
    tops = {path.name.partition("-")[0] for path in (tmp_path / "unpacked").iterdir()}
    assert tops == {"ncp_callbacks"}
    sources = {path.relative_to(ROOT) for path in (ROOT / "ncp_callbacks").rglob("*")}
    needed = {path for path in sources if path.suffix in (".py", ".pyi", ".typed")}
    found = {p.relative_to(tmp_path / "unpacked") for p in (tmp_path / "unpacked").rglob("*")}
    assert Path("ncp_callbacks/__init__.pyi") in needed <= found
