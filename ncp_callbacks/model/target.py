"""Reduce a model's outputs to the scalar of each sequence that is attributed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..arrays import to_mlx
from ..held_out import HeldOutBatch
from .conventions import Calling
from .errors import ModelError

__all__ = ["At", "Target", "TargetLike"]

# Names of classes are strings, too: the literals are for completion.
TargetLike: TypeAlias = (
    "Literal['prediction', 'loss'] | str | int | Callable[[mx.array, Any], mx.array]"
)
At: TypeAlias = "Literal['last', 'mean'] | str | int"


class Target:
    """Reduce a model's outputs to one number per sequence.

    Args:
        target: ``"prediction"``: the only output, or with several the largest one of that sequence,
            chosen once and then kept; an index, or a name among ``class_names``: that output. Where
            outputs are the logits of classes, see :attr:`is_log_odds`, the log-odds of that class
            stands for the output. ``"loss"``: squared error, for integer targets cross-entropy
            (outputs are logits); a
            callable from all outputs (``(B, T, O)``, ``(B, H, O)`` or ``(B, O)``) and the batch's
            targets to ``(B,)``.
        at: ``"last"`` real time step, ``"mean"`` over real ones, or the index of a time step. For a
            forecast, a step of the forecast: the last one, the mean over all, or an index.
        held_out: The batch.
        calling: The calling convention of the model.

    Raises:
        ModelError: If the model's outputs or the batch's targets don't fit.
        TypeError: If ``target`` has none of these types.
        ValueError: If ``target`` or ``at`` is unknown.

    Attributes:
        name: The name for titles and guides, such as "prediction at last step".
        slug: The suffix of tags: "" for the default target, or for instance "_output2_at3".
        is_log_odds: True if an output stands for its log-odds against all others, ``z_c - ln sum_{j
            != c} exp z_j``. A term that all outputs have in common moves each output, but no
            decision, and does not move the log-odds. They are taken for integer classes, for
            one-hot targets, and without targets for the predicted output and for ``class_names``;
            not for forecasts and for several labels at once. In trained classifiers of three
            classes, features' shares in the log-odds are closer to how often replacing a feature
            changes the predicted class (L1 distance .29) than those in the largest logit (.32), its
            log-probability (.33) or probability (.31), and integrated gradients are more complete
            than of the margin to the runner-up.
    """

    def __init__(
        self, target: TargetLike, at: At, held_out: HeldOutBatch, calling: Calling
    ) -> None:
        self._held_out, self._calling = held_out, calling
        # Steps of outputs: time steps of which some may be padding, or steps of a forecast.
        self._has_steps = calling.per_step or calling.horizon is not None
        if calling.horizon is None:
            self._steps = held_out.inputs_shape[1]
            self._real, self._last = held_out.mask_array, held_out.last_steps
        else:
            self._steps = calling.horizon
            self._real = np.ones((len(held_out), self._steps), bool)
            self._last = np.full(len(held_out), self._steps - 1)
        self._target = self._check_target(target)
        self.is_log_odds = self._are_classes()
        self._at = self._check_at(at)
        step = "step" if calling.horizon is None else "forecast step"
        when = {"last": f"at last {step}", "mean": f"mean over {step}s"}.get(
            str(at), f"at {step} {self._at}"
        )
        self.name, self.slug = self._names(when if self._has_steps else "")

    def _check_target(self, target: TargetLike) -> TargetLike:
        outputs = self._calling.outputs
        names = self._held_out.class_names
        if names is not None and outputs > 1 and len(names) != outputs:
            raise ModelError(
                f"class_names has {len(names)} names, but the model has {outputs} outputs: "
                "pass one name per output"
                + (
                    ". Outputs of shape (batch, outputs, horizon) are to be transposed in forward="
                    if len(names) == self._calling.horizon
                    else ""
                )
            )
        if isinstance(target, np.integer):
            target = int(target)
        if isinstance(target, bool):
            raise TypeError(f"target={target!r}: pass 'prediction', an output's index or 'loss'")
        if isinstance(target, int):
            if not -outputs <= target < outputs:
                raise ModelError(
                    f"target={target}, but the model has {outputs} outputs: pass "
                    f"0 to {outputs - 1}, 'prediction' or 'loss'"
                )
            return target % outputs
        if isinstance(target, str):
            if target not in ("prediction", "loss"):
                if names is not None and target in names and outputs > 1:
                    return names.index(target)
                known = "" if names is None else f", one of class_names ({', '.join(names)})"
                raise ValueError(
                    f"target={target!r} is unknown: pass 'prediction', 'loss', an output's index"
                    f"{known} or a callable(outputs, targets) -> (batch,)"
                )
            if target == "loss" and self._held_out.targets is None:
                raise ModelError(
                    "target='loss' needs targets: pass HeldOutBatch(inputs, targets=...)"
                )
            return target
        if not callable(target):
            raise TypeError(
                f"target is a {type(target).__name__}: pass 'prediction', 'loss', an output's "
                "index or a callable(outputs, targets) -> (batch,)"
            )
        return target

    def _are_classes(self) -> bool:
        """Return whether the output that is followed is one of several classes' logits."""
        outputs, targets = self._calling.outputs, self._held_out.targets
        if outputs == 1 or callable(self._target) or self._target == "loss":
            return False
        if self._calling.horizon is not None:
            return False
        if not isinstance(targets, mx.array):
            return self._target == "prediction" or self._held_out.class_names is not None
        shape = tuple(targets.shape)
        # One number for each output: one-hot classes, several labels at once, or a regression.
        by_output = shape[-1] == outputs and len(shape) == 3 if self._has_steps else len(shape) == 2
        if not by_output or shape[-1] == 1:
            return not mx.issubdtype(targets.dtype, mx.floating)
        values = np.array(targets.astype(mx.float32)).reshape(-1, outputs)
        return bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1.0))

    def _check_at(self, at: At) -> At:
        if at == "last":
            return at
        if isinstance(at, np.integer):
            at = int(at)
        if at == "all":
            raise ValueError(
                "at='all': a target is one number per sequence. To attribute the outputs of all "
                "steps, add the callback OutputTime(); for their mean, pass at='mean'"
            )
        if not (at == "mean" or (isinstance(at, int) and not isinstance(at, bool))):
            raise ValueError(f"at={at!r} is unknown: pass 'last', 'mean' or a step's index")
        if not self._has_steps:
            raise ModelError(
                f"at={at!r}, but the model returns one output per sequence, not one per "
                "step: set at='last', or horizon=True if its outputs are steps of a forecast"
            )
        if isinstance(at, int):
            if not -self._steps <= at < self._steps:
                what = "held-out batch" if self._calling.horizon is None else "forecast"
                raise ModelError(
                    f"at={at}, but the {what} has {self._steps} steps: pass 0 to {self._steps - 1}"
                )
            at %= self._steps
            missing = (~self._real[:, at]).nonzero()[0]
            if len(missing):
                raise ModelError(
                    f"at={at} is padding in sequence {missing[0]} ({len(missing)} such): set "
                    "at='last', which takes each sequence's last real step"
                )
        return at

    def _names(self, when: str) -> tuple[str, str]:
        target = self._target
        if isinstance(target, int):
            what, slug = f"output {target}", f"_output{target}"
            if self._held_out.class_names is not None:
                what = self._held_out.class_names[target]
            what = f"log-odds of {what}" if self.is_log_odds else what
        elif isinstance(target, str):
            what, slug = target, "" if target == "prediction" else f"_{target}"
            what = f"log-odds of the {what}" if self.is_log_odds else what
        else:
            what = getattr(target, "__name__", type(target).__name__)
            what = "target" if what == "<lambda>" else what
            slug = "_" + re.sub(r"\W+", "_", what)
        if callable(target):
            when = ""
        elif when and self._at != "last":
            slug += "_mean" if self._at == "mean" else f"_at{self._at}"
        return f"{what} {when}".strip(), slug

    def _at_step(self, values: mx.array) -> mx.array:
        """Reduce ``(B, T, ...)`` to ``(B, ...)``, at the time step or as a mean."""
        # No gathers: MLX has no forward-mode gradient of them.
        if isinstance(self._at, int):
            return values[:, self._at]
        mask = self._real
        if self._at == "last":
            last = self._last
            if (last == self._steps - 1).all():
                return values[:, -1]
            weight = to_mlx(last)[:, None] == mx.arange(self._steps)[None]
        else:
            weight = to_mlx(mask)
        weight = weight.reshape(*weight.shape, *[1] * (values.ndim - 2))
        total = mx.where(weight, values, mx.zeros_like(values)).sum(axis=1)
        return total / weight.sum(axis=1).astype(values.dtype)

    def choose(self, outputs: mx.array) -> mx.array | None:
        """Return ``(B,)``, the output to follow in each sequence; None without a choice."""
        if self._target != "prediction" or self._calling.outputs == 1:
            return None
        at_step = self._at_step(outputs) if self._has_steps else outputs
        return mx.stop_gradient(mx.argmax(at_step, axis=-1))

    def __call__(self, outputs: mx.array, chosen: mx.array | None) -> mx.array:
        """Return ``(B,)`` values from outputs as :class:`Calling` returns, in float32 or wider."""
        if outputs.dtype in (mx.float16, mx.bfloat16):
            outputs = outputs.astype(mx.float32)
        target = self._target
        if callable(target):
            try:
                values = target(outputs, self._held_out.targets)
            except Exception as error:
                raise ModelError(
                    f"target={getattr(target, '__name__', target)!r} failed on outputs of shape "
                    f"{tuple(outputs.shape)}: {type(error).__name__}: {error}"
                ) from error
            return self._checked(values, target)
        if target == "loss":
            return self._checked(self._loss(outputs), target)
        if self._has_steps:
            outputs = self._at_step(outputs)
        if isinstance(target, int):
            values = self._followed(outputs, mx.array(target))
        elif chosen is None:
            values = outputs[:, 0]
        else:
            values = self._followed(outputs, chosen)
        return self._checked(values, target)

    def _followed(self, outputs: mx.array, index: mx.array) -> mx.array:
        """Return the outputs of an index, ``(...)`` of ``(..., O)``, or their log-odds."""
        own = index[..., None] == mx.arange(outputs.shape[-1])
        values = mx.where(own, outputs, mx.zeros_like(outputs)).sum(axis=-1)
        if not self.is_log_odds:
            return values
        known = mx.stop_gradient(outputs)
        largest = mx.where(own, mx.full(known.shape, -mx.inf), known).max(axis=-1, keepdims=True)
        apart = mx.where(own, mx.zeros_like(outputs), outputs - largest)
        others = mx.where(own, mx.zeros_like(outputs), mx.exp(apart)).sum(axis=-1)
        return values - largest[..., 0] - mx.log(others)

    def _checked(self, values: Any, target: Any) -> mx.array:
        batch = len(self._held_out)
        if not isinstance(values, mx.array) or tuple(values.shape) != (batch,):
            shape = tuple(values.shape) if isinstance(values, mx.array) else type(values).__name__
            raise ModelError(
                f"target={getattr(target, '__name__', target)!r} returned {shape}; it must return "
                f"one number per sequence, an mx.array of shape ({batch},)"
            )
        if not mx.issubdtype(values.dtype, mx.floating):
            raise ModelError(
                f"target returned dtype {values.dtype}, which has no gradient: return floats"
            )
        return values

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what tells the target from others of the same batch."""
        target = self._target
        return (id(target) if callable(target) else target, type(target), self._at)

    @property
    def is_loss(self) -> bool:
        """Return whether the target is ``"loss"``."""
        return isinstance(self._target, str) and self._target == "loss"

    @property
    def of_every_step(self) -> tuple[str, str] | None:
        """Return name and slug of :meth:`every_step`'s values; None if it is not applicable."""
        if not self._calling.per_step or callable(self._target):
            return None
        what, slug = self._names("")
        return f"{what} at each step", slug

    @property
    def follows_predictions(self) -> bool:
        """Return whether the largest of several outputs is followed."""
        return self._target == "prediction" and self._calling.outputs > 1

    def every_step(self, outputs: mx.array, follow: mx.array | None = None) -> mx.array:
        """Return the target at every time step, ``(B, T)`` from ``(B, T, O)``.

        Args:
            outputs: ``(B, T, O)``.
            follow: ``(B, T)``, the outputs to follow for a prediction; None: the largest of each
                time step.
        """
        if outputs.dtype in (mx.float16, mx.bfloat16):
            outputs = outputs.astype(mx.float32)
        if self._target == "loss":
            return self._loss(outputs, every_step=True)
        if isinstance(self._target, int):
            return self._followed(outputs, mx.array(self._target))
        if follow is None:
            follow = mx.stop_gradient(mx.argmax(outputs, axis=-1))
        return self._followed(outputs, follow)

    def hits(self, outputs: mx.array) -> mx.array | None:
        """Return ``(B,)``, the share of right classes at the time step; None without classes.

        Raises:
            ModelError: If the targets don't fit the outputs.
        """
        outputs, targets, per_step = self._against_targets(outputs)
        if mx.issubdtype(targets.dtype, mx.floating):
            return None
        if targets.shape[-1] == 1 and outputs.shape[-1] > 1:
            right = mx.argmax(outputs, axis=-1) == targets[..., 0]
        else:
            right = ((outputs > 0) == (targets > 0)).mean(axis=-1)
        right = right.astype(mx.float32)
        return self._at_step(right) if per_step else right

    def classes(self, outputs: mx.array) -> mx.array | None:
        """Return ``(B, 2)``, the true and the predicted class at the time step of the target.

        It is None where a sequence has no single class: without integer targets, for labels of
        several outputs, and for a mean over targets of each time step.

        Raises:
            ModelError: If the targets don't fit the outputs.
        """
        outputs, targets, per_step = self._against_targets(outputs)
        averaged = per_step and self._at == "mean"
        if mx.issubdtype(targets.dtype, mx.floating) or targets.shape[-1] != 1 or averaged:
            return None
        true, predicted = targets[..., 0], mx.argmax(outputs, axis=-1)
        if outputs.shape[-1] == 1:
            true, predicted = true > 0, outputs[..., 0] > 0
        both = mx.stack([true.astype(mx.float32), predicted.astype(mx.float32)], axis=-1)
        both = self._at_step(both) if per_step else both
        return both if both.ndim == 2 else None

    def _loss(self, outputs: mx.array, every_step: bool = False) -> mx.array:
        outputs, targets, per_step = self._against_targets(outputs, every_step)
        classes = not mx.issubdtype(targets.dtype, mx.floating)
        if classes and targets.shape[-1] == 1 and outputs.shape[-1] > 1:
            self._check_classes(targets[..., 0], outputs.shape[-1], per_step, every_step)
            loss = nn.losses.cross_entropy(outputs, targets[..., 0], reduction="none")
        elif classes:
            labels = targets.astype(outputs.dtype)
            loss = nn.losses.binary_cross_entropy(
                outputs, labels, with_logits=True, reduction="none"
            ).mean(axis=-1)
        else:
            loss = ((outputs - targets.astype(outputs.dtype)) ** 2).mean(axis=-1)
        return self._at_step(loss) if per_step and not every_step else loss

    def _against_targets(
        self, outputs: mx.array, every_step: bool = False
    ) -> tuple[mx.array, mx.array, bool]:
        """Return outputs and targets of the same axes, and whether they are of every time step.

        The last axis of the targets is 1 for classes.

        Raises:
            ModelError: If they don't fit.
        """
        targets = self._held_out.targets
        if not isinstance(targets, mx.array):
            raise ModelError(
                f"target='loss' needs targets as an array, not {type(targets).__name__}; for "
                "another loss pass target=callable(outputs, targets) -> (batch,)"
            )
        classes = not mx.issubdtype(targets.dtype, mx.floating)
        # Targets without an output axis: (B, T) for (B, T, O), (B,) for (B, O).
        per_step = self._has_steps and self._is_per_step(targets, outputs, classes)
        if every_step and not per_step:
            targets = mx.repeat(targets[:, None], self._steps, axis=1)
        elif self._has_steps and not per_step:
            outputs = self._at_step(outputs)
        shape, expected = tuple(targets.shape), tuple(outputs.shape)
        if shape == expected[:-1] and (classes or expected[-1] == 1):
            targets = targets[..., None]
        elif shape != expected:
            allowed = f"{expected[:-1]} (classes)" if expected[-1] > 1 else f"{expected[:-1]}"
            raise ModelError(
                f"target='loss': targets of shape {shape} don't fit outputs of shape {expected}; "
                f"pass targets of shape {allowed} or {expected}"
            )
        return outputs, targets, per_step

    def _check_classes(
        self, targets: mx.array, outputs: int, per_step: bool, every_step: bool
    ) -> None:
        """Raise if a class that is read is out of range, for which MLX would read other memory."""
        labels = np.array(targets.astype(mx.int64))
        read = np.ones(labels.shape, bool)
        if per_step and (every_step or self._at == "mean"):
            read = self._real
        elif per_step:
            last = self._last if self._at == "last" else self._at
            read = np.arange(self._steps) == np.reshape(last, (-1, 1))
        bad = np.argwhere(read & ((labels < 0) | (labels >= outputs)))
        if len(bad):
            place = ", ".join(map(str, bad[0]))
            raise ModelError(
                f"target='loss': class {labels[tuple(bad[0])]} at targets[{place}] ({len(bad)} "
                f"such), but the model has {outputs} outputs: classes are 0 to {outputs - 1}. "
                "Steps without a class belong to the padding: pass mask= to HeldOutBatch"
            )

    def _is_per_step(self, targets: mx.array, outputs: mx.array, classes: bool) -> bool:
        if targets.ndim < 2 or targets.shape[1] != self._steps:
            return False
        if targets.ndim == 3:
            return True
        # (B, T) could be (B, O) when there are as many outputs as steps: floats then are outputs.
        return classes or outputs.shape[-1] != self._steps
