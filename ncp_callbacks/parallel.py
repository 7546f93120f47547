"""Run jobs by joblib, in processes that MLX survives."""

from __future__ import annotations

from typing import Any

__all__ = ["checked_n_jobs", "parallel_jobs"]


def checked_n_jobs(n_jobs: Any) -> int:
    """Return the argument ``n_jobs``.

    Raises:
        ValueError: If it is no whole number, or 0.
    """
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs == 0:
        raise ValueError(f"n_jobs={n_jobs!r}: pass 1 or more jobs, or -1 for one per core")
    return n_jobs


def parallel_jobs(n_jobs: int) -> tuple[int, str]:
    """Return how many jobs run at once, and how joblib's backend in use returns results.

    With backends of threads or forks it is one job: settings of MLX belong to the whole process,
    and MLX survives no fork.
    """
    from joblib import effective_n_jobs
    from joblib.parallel import MultiprocessingBackend, get_active_backend

    backend, _ = get_active_backend()
    # Other backends, such as Ray's, derive from the one that forks.
    if getattr(backend, "uses_threads", False) or type(backend) is MultiprocessingBackend:
        return 1, "list"
    generates = getattr(backend, "supports_return_generator", False)
    return effective_n_jobs(n_jobs), "generator" if generates else "list"
