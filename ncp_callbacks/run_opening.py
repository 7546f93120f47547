"""Describe a run in the records that open its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .callback import Callback
from .findings.run_findings import RunFindings
from .fingerprint import fingerprint
from .model import ModelRunner
from .records import Data, Record, Text
from .run_card import run_card
from .run_facts import run_facts
from .run_log import RunLog
from .scheduling import Schedule
from .screen import FINGERPRINT

__all__ = ["opening_records"]


def opening_records(
    log: RunLog,
    runner: ModelRunner,
    callbacks: Sequence[Callback],
    every: Schedule,
    run_config: Mapping[str, Any],
    place: str,
) -> list[Record]:
    """Return run card, fingerprint and facts of a run, which the log uses from now on, too.

    Args:
        log: The log of the run, which has the notes for the card.
        runner: Runs the model on the held-out batch.
        callbacks: The callbacks that apply to the model.
        every: The schedule of callbacks without one of their own.
        run_config: Hyper-parameters.
        place: Where the observer runs, as in "in a process of its own".
    """
    card = run_card(runner, callbacks, every, run_config, log.notes, place)
    log.findings = RunFindings(run_facts(runner, callbacks))
    log.fingerprint = fingerprint(runner.held_out, callbacks, runner.target.name)
    return [Text("monitor/run", card), Data(FINGERPRINT, log.fingerprint), log.findings.about()]
