"""Tell which process of a group this is, without connecting to the others."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["rank", "why_silent"]


@dataclass(frozen=True)
class _Launcher:
    """The variables that a launcher sets in each process.

    Attributes:
        rank: Has the number of the process.
        sizes: Each has a number of processes.
        needs_size: A number of processes above 1 must be set, too, as a job of a single process has
            a rank as well, or as the name of the rank may have another meaning.
    """

    rank: str
    sizes: tuple[str, ...]
    needs_size: bool = False


# Asking mx.distributed itself would connect to the other ranks.
_LAUNCHERS = (
    _Launcher("MLX_RANK", ("MLX_WORLD_SIZE",)),
    _Launcher("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    _Launcher("PMI_RANK", ("PMI_SIZE",)),
    _Launcher("PMIX_RANK", ("SLURM_NTASKS",)),
    _Launcher("MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",)),
    _Launcher("SLURM_PROCID", ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"), needs_size=True),
    _Launcher("RANK", ("WORLD_SIZE", "LOCAL_WORLD_SIZE"), needs_size=True),  # of torchrun
)


def rank() -> int:
    """Return the rank of this process in its group, 0 outside of one."""
    launcher = _launcher()
    return 0 if launcher is None else int(os.environ[launcher.rank])


def why_silent() -> str:
    """Return why a process of a rank above 0 logs nothing, and what to do if it should."""
    launcher = _launcher()
    if launcher is None:
        return ""
    size = max(launcher.sizes, key=_number)
    known = f" of {_number(size)}" if _number(size) else ""
    where = f"{launcher.rank}={os.environ[launcher.rank]}"
    where += f", {size}={os.environ[size]}" if known else ""
    return (
        f"ncp_callbacks: this process has rank {rank()}{known} ({where}) and logs nothing, because "
        "rank 0 logs for all that train one model together. If each process trains a model of its "
        "own, such as one for each seed, pass log_on_all_ranks=True, and a log_dir= of its own to "
        "each"
    )


def _launcher() -> _Launcher | None:
    """Return the launcher that this process has its rank from, or None."""
    for launcher in _LAUNCHERS:
        if os.environ.get(launcher.rank, "").isdigit():
            size = max(map(_number, launcher.sizes))
            if not launcher.needs_size or size > max(1, int(os.environ[launcher.rank])):
                return launcher
    return None


def _number(variable: str) -> int:
    """Return the number in an environment variable, 0 if there is none."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else 0
