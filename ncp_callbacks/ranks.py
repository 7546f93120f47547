"""Tell which process of a group this is, without connecting to the others."""

from __future__ import annotations

import os

__all__ = ["rank", "rank_variable"]

# Set by mlx.launch and by MPI; asking mx.distributed itself would connect to the other ranks.
_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


def rank() -> int:
    """Return the rank of this process in its group, 0 outside of one."""
    variable = rank_variable()
    return 0 if variable is None else int(os.environ[variable])


def rank_variable() -> str | None:
    """Return the environment variable that has the rank of this process, or None."""
    known = list(_VARIABLES)
    if os.environ.get("SLURM_NTASKS", "1") != "1":
        # A job of one task has it, too.
        known.append("SLURM_PROCID")
    return next((name for name in known if os.environ.get(name, "").isdigit()), None)
