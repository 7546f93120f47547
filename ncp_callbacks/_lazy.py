"""Import the public names of a package when they are first used (PEP 562).

The stub beside a package's ``__init__.py`` is the one list of its names: type checkers and editors
read it as they read any stub, and :func:`attach_stub` reads it at run time. So ``import
ncp_callbacks`` imports neither MLX nor matplotlib, and a new name is one line::

    from .callbacks.dynamics.callback import Dynamics as Dynamics
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["attach_stub"]


def attach_stub(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package from its stub.

    ::

        __getattr__, __dir__, __all__ = attach_stub(__name__)

    The stub ``__init__.pyi`` holds relative imports: ``from .module import name as name``,
    ``from . import module as module``, and ``from .package import *`` where that package has a
    stub of its own. Modules are attributes of the package, but not part of ``__all__``.

    Args:
        package: Full name of the package, ``__name__`` in its ``__init__.py``.
    """
    stub = pkgutil.get_data(package, "__init__.pyi") or b""
    homes = dict(_names(package, stub.decode()))
    public = sorted(name for name, (_, attribute) in homes.items() if attribute)

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = homes[name]
        value: Any = importlib.import_module(module)
        if attribute:
            value = getattr(value, attribute)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__, public


def _names(package: str, stub: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each name of a stub with the module and the attribute it stands for.

    The attribute is empty where the name stands for the module itself.
    """
    for node in ast.parse(stub).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            if alias.name == "*":
                for name in importlib.import_module(module).__all__:
                    yield name, (module, name)
            elif node.module is None:
                yield alias.name, (f"{module}.{alias.name}", "")
            else:
                yield alias.asname or alias.name, (module, alias.name)
