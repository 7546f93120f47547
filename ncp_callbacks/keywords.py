"""Name the keyword that a misspelt one is likely to be."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

__all__ = [
    "check_keywords",
    "checks_function_keywords",
    "checks_keywords",
    "keywords_of",
    "takes_others",
]

F = TypeVar("F", bound=Callable[..., Any])


def check_keywords(passed: Iterable[str], known: Iterable[str], what: str) -> None:
    """Check names of keywords.

    Args:
        passed: Those that were passed.
        known: Those that there are.
        what: What they were passed to, as in "Monitor".

    Raises:
        TypeError: One is unknown. It names the most similar one, or all.
    """
    names = list(known)
    for name in passed:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, cutoff=0.6)
            guess = f"did you mean {near[0]!r}?" if near else f"pass {', '.join(names)}"
            raise TypeError(f"{name!r} is an unknown keyword of {what}: {guess}")


def checks_keywords(init: F) -> F:
    """Let a constructor name the keyword that a misspelt one is likely to be.

    Keywords of the constructors of subclasses are known, too, which pass on those of others.
    """

    @functools.wraps(init)
    def checked(self: Any, *arguments: Any, **keywords: Any) -> None:
        unknown = [name for name in keywords if name not in own]
        if unknown:
            check_keywords(unknown, _keywords(type(self)), type(self).__name__)
        init(self, *arguments, **keywords)

    own = frozenset(keywords_of(init))
    return cast("F", checked)


def checks_function_keywords(function: F) -> F:
    """Let a function name the keyword that a misspelt one is likely to be."""

    @functools.wraps(function)
    def checked(*arguments: Any, **keywords: Any) -> Any:
        if not keywords.keys() <= own:
            check_keywords(keywords, keywords_of(function), f"{function.__name__}()")
        return function(*arguments, **keywords)

    own = frozenset(keywords_of(function))
    return cast("F", checked)


def keywords_of(function: Callable[..., Any]) -> list[str]:
    """Return the keywords that a function or method names in its signature."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in kinds and p.name not in ("self", "cls")]


def _keywords(cls: type) -> list[str]:
    """Return the keywords of a constructor, and of those that it passes others on to."""
    named: list[str] = []
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if inspect.isfunction(init):
            named += keywords_of(init)
            if not takes_others(init):
                break
    return list(dict.fromkeys(named))


def takes_others(function: Callable[..., Any]) -> bool:
    """Return whether a function takes keywords that its signature doesn't name."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
