"""Tell what the target rests on: features or tokens, time steps and elapsed time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...screen import clean_tag
from ..facts import Facts, Number
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import count, joined, percent, since
from .time_disagreement import block_difference

__all__ = ["RestsOn", "last_steps"]

_MAX_NAMED, _ENOUGH, _MOST = 3, 0.8, 0.7


class RestsOn(Rule):
    """Name the features or tokens, time steps and elapsed time that the attribution is assigned to.

    It names the strongest features until they have 80 % together, at most three: a longer list is
    the picture's task. Of tokens it names as many, and how often each occurs: one that is frequent
    carries more. The time steps are the fewest last ones, or else the fewest whatever their place,
    that hold 70 %. It says "attribution", and no more: that a change of the input changes the
    target is what removal checks. Where removal of blocks of time disputes the time steps, the
    sentence names both shares.
    """

    name = "rests_on"
    topic = Topic.RELIANCE
    reads = (
        "attribution/strength",
        "attribution/time_share",
        "attribution*_share/*",
        "_ncp/attribution*_strength",
        "_ncp/attribution*_tokens",
        "removal/strength",
        "_ncp/removal*_block*",
    )
    needs = ("attribution/strength",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        strength = facts.first("attribution", "strength")
        if strength is None:
            return
        group = strength[0].partition("/")[0]
        if strength[1].value == 0:
            yield self.finding(
                facts,
                Severity.PROBLEM,
                f"Nothing is attributed to any input: every attribution of the {facts.run.target} "
                "is exactly 0.",
                "Check that no stop_gradient, rounding or numpy lies between the inputs and the "
                'outputs, and that the inputs are not all 0; or set method="occlusion".',
                dict([strength]),
                "no attribution",
            )
            return
        parts, numbers = self._tokens(facts, group)
        if not parts:
            parts, numbers = self._features(facts, group)
        steps = self._time_steps(facts, group)
        apart = block_difference(facts)
        if steps and apart is not None and apart.is_doubtful:
            steps[0] += (
                f", which removal disputes: {apart.name} with {percent(apart.attributed)} of it "
                f"and {percent(apart.removed)} by removal"
            )
        parts += steps
        time_share = facts.numbers.get(f"{group}/time_share")
        if time_share is not None and np.isfinite(time_share.value):
            sentence = f"elapsed time has {percent(time_share)} of inputs and time together"
            # What carries most comes first.
            parts.insert(0 if time_share.at_least > 0.5 else len(parts), sentence)
            numbers[f"{group}/time_share"] = time_share
        if parts:
            text = "; ".join(parts) + since(strength[1], facts.step)
            yield self.finding(
                facts,
                Severity.INFO,
                f"{text[0].upper()}{text[1:]}.",
                "Compare this with what should matter for the task, and confirm the first feature "
                "by removing it.",
                numbers,
                "reliance",
            )

    def _features(self, facts: Facts, group: str) -> tuple[list[str], dict[str, Number]]:
        shares = facts.shares(group)
        if len(shares) < 2:
            return [], {}
        named: list[str] = []
        total = 0.0
        for name in shares:
            if len(named) == _MAX_NAMED or total >= _ENOUGH:
                break
            if name not in ("other", "other_features") or name in facts.run.feature_names:
                named.append(name)
                total += shares[name].value
        texts = [
            f"{name} {'has ' if name == named[0] else ''}{percent(shares[name])}" for name in named
        ]
        numbers = {clean_tag(f"{group}_share/{name}"): shares[name] for name in named}
        return [f"of the attribution to inputs, {joined(texts)}"], numbers

    def _tokens(self, facts: Facts, group: str) -> tuple[list[str], dict[str, Number]]:
        rows = facts.arrays.get(f"_ncp/{group}_tokens")
        if rows is None or rows.ndim != 2 or rows.shape[1] != 5 or not len(rows):
            return [], {}
        if not np.isfinite(rows[:, [0, 1, 4]]).all():
            return [], {}
        texts: list[str] = []
        numbers: dict[str, Number] = {}
        total = 0.0
        for token, share, low, high, often in rows[:_MAX_NAMED].tolist():
            if total < _ENOUGH:
                name, number = f"token {int(token)}", Number(share, low, high)
                has, where = ("has ", " of the time steps") if not texts else ("", "")
                texts.append(f"{name} {has}{percent(number)} with {percent(often)}{where}")
                numbers[f"{group}, {name}"] = number
                total += share
        return [f"of the attribution to inputs, {joined(texts)}"], numbers

    def _time_steps(self, facts: Facts, group: str) -> list[str]:
        profile = facts.time_profile(group)
        if profile is None or len(profile) < 2:
            return []
        steps, held = last_steps(profile, _MOST)
        if steps <= len(profile) / 2:
            last = "the last time step" if steps == 1 else f"the last {steps}"
            verb = "holds" if steps == 1 else "hold"
            return [f"{last} of {len(profile)} time steps {verb} {percent(held)}".replace(
                "the last time step of", "the last of")]  # fmt: skip
        order = np.sort(profile)[::-1]
        fewest = int(np.searchsorted(np.cumsum(order), _MOST) + 1)
        return [
            f"{percent(float(order[:fewest].sum()))} is spread over "
            f"{fewest} of {count(len(profile), 'time step')}"
        ]


def last_steps(profile: np.ndarray, share: float) -> tuple[int, float]:
    """Return the fewest last time steps that hold a share of a profile, and what they hold."""
    held = np.cumsum(profile[::-1])
    steps = min(int(np.searchsorted(held, share * (1 - 1e-9))) + 1, len(profile))
    return steps, float(held[steps - 1])
