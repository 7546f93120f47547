"""Choose the states that the interactive view shows: some trajectories, and all units over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...observation import Observation, Trajectory
from ...records import Array
from ...results import FloatArray
from .analysis import Basis, explained_variance

__all__ = ["MAX_SEQUENCES", "MAX_STEPS", "MAX_UNITS", "ShownStates", "third_axis"]

MAX_SEQUENCES, MAX_STEPS, MAX_UNITS = 16, 64, 256


class ShownStates:
    """Show trajectories along three axes: the two of the picture, and the best that is left.

    The third axis is kept as long as the two are.
    """

    def __init__(self) -> None:
        self._of: FloatArray | None = None  # The axes of the picture for which the third is.
        self._third: FloatArray | None = None
        self._elapsed_logged = False

    def arrays(
        self, cell: Trajectory, group: str, basis: Basis, observation: Observation
    ) -> Iterator[Array]:
        """Yield the arrays of a snapshot.

        Args:
            cell: The states.
            group: Group of the tags.
            basis: Mean and two axes of the picture.
            observation: What they were made of.
        """
        batch, steps, units = cell.values.shape
        real = np.ones((batch, steps), bool) if observation.mask is None else observation.mask
        use = real & np.isfinite(cell.values).all(axis=2)
        of, third = self._of, self._third
        if of is None or third is None or not np.array_equal(of, basis.components):
            third = third_axis(cell.values[use], basis)
            self._of, self._third = basis.components, third
        rows, at = _spread(batch, MAX_SEQUENCES), _spread(steps, MAX_STEPS)
        axes = np.concatenate([basis.components[:2], third[None]])
        shown = np.where(use[rows][:, at, None], cell.values[rows][:, at] - basis.mean, np.nan)
        about = {
            "cell": cell.cell,
            "sequences": observation.indices[rows].tolist(),
            "time_steps": at.tolist(),
        }
        yield Array(
            f"_ncp/{group}_trajectory",
            shown @ axes.T,
            kind="trajectory",
            axes=("sequence", "time step", "axis"),
            about=about,
        )
        some = _spread(units, MAX_UNITS)
        yield Array(
            f"_ncp/{group}_units",
            _mean_over_sequences(cell.values[:, at], use[:, at])[:, some],
            kind="units",
            axes=("time step", "unit"),
            about={"cell": cell.cell, "units": some.tolist(), "time_steps": at.tolist()},
        )
        if observation.time_delta is not None and not self._elapsed_logged:
            # It is the same at every snapshot.
            self._elapsed_logged = True
            elapsed = np.where(real, observation.time_delta, 0.0).cumsum(axis=1)[rows][:, at]
            yield Array(
                f"_ncp/{group}_elapsed",
                elapsed,
                kind="elapsed",
                axes=("sequence", "time step"),
                about=about,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"of": self._of, "third": self._third}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        of, third = state["of"], state["third"]
        self._of = None if of is None else np.asarray(of)
        self._third = None if third is None else np.asarray(third)


def third_axis(samples: FloatArray, basis: Basis) -> FloatArray:
    """Return ``(H,)``, the axis along which what two axes leave of the states varies most.

    It is 0 if nothing is left.

    Args:
        samples: ``(N, H)``, states.
        basis: Mean and the two axes.
    """
    two = basis.components[:2]
    centred = samples - basis.mean
    left = centred - centred @ two.T @ two
    if not len(left) or not left.any():
        return np.zeros(samples.shape[1])
    _, variances, axes = explained_variance(left)
    total = float(np.square(centred).mean(axis=0).sum())
    # What rounding leaves has no direction.
    if variances[0] <= 1e-10 * total:
        return np.zeros(samples.shape[1])
    axis = axes[0] - (two @ axes[0]) @ two
    axis = axis / np.linalg.norm(axis)
    found: FloatArray = axis * np.sign(axis[np.abs(axis).argmax()])
    return found


def _spread(count: int, most: int) -> npt.NDArray[np.intp]:
    """Return at most so many places, spread from the first to the last."""
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).round().astype(np.intp)


def _mean_over_sequences(states: FloatArray, use: npt.NDArray[np.bool_]) -> FloatArray:
    """Return ``(T, H)``, means over the sequences that are real there; NaN where none is."""
    count = use.sum(axis=0)[:, None]
    total = np.where(use[:, :, None], states, 0.0).sum(axis=0)
    mean: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean
