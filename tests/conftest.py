import logging
import signal

import mlx.core as mx
import pytest
from hypothesis import settings

# A suite that a shell or nohup started in the background has these ignored, and so would have the
# processes that tests start and send them to.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Machines differ in speed, and a failure must come back when the test is run again.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("repeatable")


def pytest_collectstart(collector):
    """Give the models that a module of tests makes the same weights in each run."""
    if isinstance(collector, pytest.Module):
        mx.random.seed(0)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Let models have the same weights in each run, whichever tests ran before: MLX starts from
    the clock."""
    mx.random.seed(0)


@pytest.fixture(autouse=True)
def _in_the_loop(monkeypatch):
    """Tests look at what analyses do, so by default they run where the test runs."""
    monkeypatch.setattr("ncp_callbacks.observer.placement.why_in_loop", lambda nbytes: "a test")


@pytest.fixture
def log(caplog):
    """Capture what the package logs, from INFO on."""
    caplog.set_level(logging.INFO, logger="ncp_callbacks")
    return caplog
