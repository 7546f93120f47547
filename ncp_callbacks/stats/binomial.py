"""Compute confidence intervals and tests of shares of independent cases."""

from __future__ import annotations

__all__ = ["at_least_p", "share_ci"]


def share_ci(hits: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact confidence interval of a share, ``hits`` of ``total`` cases.

    Args:
        hits: Number of cases that count.
        total: Number of all cases, at least 1.
        level: How often the CI has the true share, at least.

    Source: Clopper & Pearson 1934 (Biometrika 26, 404-413).
    """
    from scipy import special

    tail = (1 - level) / 2
    low = float(special.betaincinv(hits, total - hits + 1, tail)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, total - hits, 1 - tail)) if hits < total else 1.0
    return low, high


def at_least_p(hits: int, total: int, share: float) -> float:
    """Return the probability of ``hits`` or more of ``total`` cases, each with this share."""
    from scipy import special

    return 1.0 if hits <= 0 else float(special.bdtrc(hits - 1, total, share))
