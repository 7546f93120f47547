"""Compare the time profile of an attribution with removal of blocks of time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..facts import Facts, Number
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import percent, since, time_steps
from .disagreement import APART, are_apart

__all__ = ["BlockDifference", "RemovalDisagreesOnTime", "block_difference"]


class BlockDifference(NamedTuple):
    """Hold the block of time whose shares by attribution and by removal differ most.

    Attributes:
        name: Its time steps, in words.
        attributed, removed: Its two shares.
        disputed: True if they differ by 10 % of the whole or more, and beyond chance.
    """

    name: str
    attributed: Number
    removed: Number
    disputed: bool

    @property
    def size(self) -> float:
        """Return the difference of the shares."""
        return abs(self.attributed.value - self.removed.value)

    @property
    def is_large(self) -> bool:
        """Return whether the shares are so far apart that they disagree."""
        return are_apart(self.attributed, self.removed)

    @property
    def is_doubtful(self) -> bool:
        """Return whether the time profile is to be read with a doubt."""
        return self.disputed or self.is_large


def block_difference(facts: Facts) -> BlockDifference | None:
    """Return the block of time on which attribution and removal differ most; None without both."""
    found = facts.first("removal", "strength")
    if found is None:
        return None
    group, step = found[0].partition("/")[0], found[1].step
    shares = facts.arrays.get(f"_ncp/{group}_block_shares")
    blocks = facts.arrays.get(f"_ncp/{group}_blocks")
    if shares is None or blocks is None or shares.ndim != 2 or blocks.ndim != 2:
        return None
    if len(shares) != 7 or len(blocks) < 2 or shares.shape[1] != blocks.shape[1]:
        return None
    if not shares.size or not np.isfinite(shares[[0, 3]]).all():
        return None
    place = int(np.argmax(np.abs(shares[0] - shares[3])))
    first, last = (int(edge) for edge in blocks[:2, place])
    own, other = shares[:3, place].tolist(), shares[3:6, place].tolist()
    return BlockDifference(
        time_steps(first, last),
        Number(own[0], own[1], own[2], step=step),
        Number(other[0], other[1], other[2], step=step),
        bool(shares[6, place]),
    )


class RemovalDisagreesOnTime(Rule):
    """Report a block of time whose share by attribution and by removal differ by over 20 points.

    Their CIs must not overlap, either. The thresholds are those of ``removal_disagrees``, for
    blocks in the place of features: removal replaces all inputs and elapsed times of a block by
    those of another sequence. Where the model jumps or has latched, gradients miss the time steps
    that decided, and the time profile then shows others. Differences of 10 % of the whole that are
    beyond chance are no warning, but they are no agreement, either.
    """

    name = "removal_disagrees_on_time"
    topic = Topic.TRUST
    reads = ("attribution/strength", "removal/strength", "_ncp/removal*_block*")
    needs = ("attribution/strength", "removal/strength")

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = block_difference(facts)
        if found is None:
            return
        name, a, b, disputed = found
        shares = f"{percent(a)} of the attribution, and {percent(b)} of the changes when blocks"
        numbers = {f"attribution at {name}": a, f"removal of {name}": b}
        when = since(a, facts.step)
        if found.is_large:
            yield self.finding(
                facts,
                Severity.WARNING,
                f"Attribution and removal disagree on time: {name} "
                f"{'have' if 'steps' in name else 'has'} {shares} of time are replaced{when}.",
                "Don't read the time profile as when the model decides. Where removal is higher, "
                'the model jumps or has latched there, and method="occlusion" shows it; where it '
                "is lower, other time steps may carry the same.",
                numbers,
                "times disagree",
            )
        elif disputed:
            yield self.finding(
                facts,
                Severity.INFO,
                f"Attribution and removal differ beyond chance on time: {name} "
                f"{'have' if 'steps' in name else 'has'} {shares} of time are replaced{when}.",
                "Rest no conclusion on the time profile alone.",
                numbers,
                "times disputed",
            )
        elif found.size <= APART / 2:
            yield self.finding(
                facts,
                Severity.GOOD,
                "Attribution and removal agree on time: the shares of blocks of time differ by at "
                f"most {100 * found.size:.0f} points, for {name}{when}.",
                "Nothing to do.",
                numbers,
                "times agree",
            )
