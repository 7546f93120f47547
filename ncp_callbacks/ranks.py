"""Tell which process of a group this is, without connecting to the others."""

from __future__ import annotations

import os

__all__ = ["rank"]

# Set by mlx.launch and by MPI; asking mx.distributed itself would connect to the other ranks.
_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


def rank() -> int:
    """Return the rank of this process in its group, 0 outside of one."""
    for variable in _VARIABLES:
        value = os.environ.get(variable, "")
        if value.isdigit():
            return int(value)
    if os.environ.get("SLURM_NTASKS", "1") != "1":
        value = os.environ.get("SLURM_PROCID", "")
        return int(value) if value.isdigit() else 0
    return 0
