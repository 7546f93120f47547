"""Log how well the model does on the held-out batch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...callback import Callback, non_finite_count, scalar_with_ci
from ...model import NotApplicable
from ...observation import Need, Observation
from ...records import Array, Note, Record
from ...stats import MAX_CLASSES, SHARE, SIZE, Estimate, confusion_matrix

__all__ = ["HeldOutScore"]


class HeldOutScore(Callback):
    """Log loss and accuracy on the held-out batch: they tell what other numbers are worth.

    A monitor adds it wherever the held-out batch has targets. It costs nothing beside a callback
    that analyses as many sequences, or else a forward pass. It does not apply to targets that fit
    only a loss function of your own.

    =========================== ====== =============================================================
    Tag                         Record What
    =========================== ====== =============================================================
    ``held_out/loss``           scalar mean over sequences of ``target="loss"``: cross-entropy for
                                       classes, else squared error, at the time step of the target
    ``held_out/accuracy``       scalar share of right classes, at the time step of the target
    ``held_out/nonfinite``      scalar sequences skipped because of NaN or infinity
    ``_ncp/held_out_confusion`` array  ``(K, K)``, number of sequences by true class, down, and by
                                       predicted class, across; for at most 64 classes
    =========================== ====== =============================================================

    They come with 95 % CIs over sequences, which are unreliable with fewer than 16 sequences.

    Args:
        every, name, max_sequences: See :class:`Callback`.
    """

    needs = frozenset({Need.LOSSES, Need.HITS, Need.CLASSES})
    default_name = "held_out"

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        losses = observation.losses
        if losses is None and observation.target_slug.startswith("_loss"):
            losses = observation.target_values
        if losses is None:
            missing = "its targets fit only a loss function of your own, which the loop can log"
            if observation.held_out.targets is None:
                missing = "it has no targets, pass HeldOutBatch(inputs, targets=...)"
            raise NotApplicable(f"the held-out batch has no loss: {missing}")
        finite = np.isfinite(losses)
        if finite.any():
            yield scalar_with_ci(
                f"{self.name}/loss",
                float(losses[finite].mean(dtype=np.float64)),
                Estimate.mean(losses[finite], SIZE),
                "Mean loss of the held-out sequences: cross-entropy for classes, else squared "
                "error, at the time step of the target",
                place="headline",
            )
        if observation.hits is not None:
            hits = observation.hits.astype(np.float64)
            yield scalar_with_ci(
                f"{self.name}/accuracy",
                float(hits.mean()),
                Estimate.mean(hits, SHARE),
                "Share of the held-out sequences' classes that are predicted right, at the time "
                "step of the target",
                place="headline",
            )
        classes, outputs = observation.classes, observation.outputs.shape[-1]
        if classes is not None and outputs <= MAX_CLASSES:
            yield Array(
                f"_ncp/{self.name}_confusion",
                confusion_matrix(classes[finite], max(2, outputs)).astype(np.float32),
                "Number of held-out sequences by true and predicted class",
                axes=("true class", "predicted class"),
            )
        yield from non_finite_count(
            self.name, int((~finite).sum()), "sequences", "their loss was NaN or infinity"
        )
