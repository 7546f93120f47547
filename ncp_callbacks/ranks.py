"""Tell which process of a group this is, without connecting to the others."""

from __future__ import annotations

import os

__all__ = ["rank", "rank_variable"]

# Set by mlx.launch and by MPI; asking mx.distributed itself would connect to the other ranks.
_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK")
# What makes a rank one of several, as a job of a single task has it, too.
_SIZES = {
    "SLURM_PROCID": ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
    "RANK": ("LOCAL_WORLD_SIZE", "WORLD_SIZE"),  # of torchrun
}


def rank() -> int:
    """Return the rank of this process in its group, 0 outside of one."""
    variable = rank_variable()
    return 0 if variable is None else int(os.environ[variable])


def rank_variable() -> str | None:
    """Return the environment variable that has the rank of this process, or None."""
    known = list(_VARIABLES)
    for name, sizes in _SIZES.items():
        if any(os.environ.get(size, "1") != "1" for size in sizes):
            known.append(name)
    return next((name for name in known if os.environ.get(name, "").isdigit()), None)
