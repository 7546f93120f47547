"""Report reactions to time that are extrapolations, or errors of the solver."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts, Number
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import joined, percent

__all__ = ["Extrapolation", "SolverError", "scales_of"]

_OUTSIDE, _SOLVER = 0.5, 0.1


class Extrapolation(Rule):
    """Name the time scales at which most elapsed times are outside the range of the data.

    Above 50 % the model runs mostly on elapsed times that it has hardly met. The reaction there
    tells what the model would do, and not what it has learnt.
    """

    name = "extrapolation"
    topic = Topic.TIME
    reads = ("time_delta/outside_x*",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        outside = {
            scale: (tag, number)
            for scale, (tag, number) in scales_of(facts, "outside_x").items()
            if number.value > _OUTSIDE
        }
        if outside:
            parts = [f"×{scale} ({percent(n.value)} outside)" for scale, (_, n) in outside.items()]
            yield self.finding(
                facts,
                Severity.INFO,
                f"The reaction to elapsed time is an extrapolation at {joined(parts)} of the range "
                "of the held-out elapsed times.",
                "Pass scales nearer to 1, or train on a wider range of elapsed times.",
                dict(outside.values()),
                "extrapolation",
            )


class SolverError(Rule):
    """Report a solver error above 10 % of the reaction to elapsed time.

    The reaction at a scale consists of what the equations do and of what their solver does with too
    few sub-steps. Above 10 % the second part is no rounding.
    """

    name = "solver_error"
    topic = Topic.TIME
    reads = ("time_delta/solver_error_x*", "time_delta/sensitivity_x*")
    needs = reads

    def check(self, facts: Facts) -> Iterator[Finding]:
        whole = scales_of(facts, "sensitivity_x")
        parts = {
            scale: number.value / whole[scale][1].value
            for scale, (_, number) in scales_of(facts, "solver_error_x").items()
            if scale in whole and whole[scale][1].value > 0
        }
        if not parts:
            return
        scale = max(parts, key=lambda s: parts[s])
        numbers = {f"solver error over sensitivity at {scale}": parts[scale]}
        if parts[scale] > _SOLVER:
            yield self.finding(
                facts,
                Severity.WARNING,
                f"The solver is too coarse: at {scale} times the elapsed times, "
                f"{percent(parts[scale])} of the reaction to time is its error.",
                "Set a larger ode_unfolds of the LTC cell.",
                numbers,
                "coarse solver",
            )
        else:
            yield self.finding(
                facts,
                Severity.GOOD,
                f"The solver is fine enough: at most {percent(parts[scale])} of the reaction to "
                f"elapsed time is its error, at {scale} times the elapsed times.",
                "Nothing to do.",
                numbers,
                "fine solver",
            )


def scales_of(facts: Facts, prefix: str) -> dict[str, tuple[str, Number]]:
    """Return tags and finite numbers of a kind, by the scale that ends their names.

    Args:
        facts: What to search.
        prefix: Beginning of the names, such as ``"sensitivity_x"``.
    """
    names = {
        tag.partition("/")[2] for tag in facts.numbers if tag.partition("/")[2].startswith(prefix)
    }
    found = {name.removeprefix(prefix): facts.first("time_delta", name) for name in sorted(names)}
    return {scale: entry for scale, entry in found.items() if entry is not None}
