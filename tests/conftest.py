import pytest
from hypothesis import settings

# Machines differ in speed, and a failure must come back when the test is run again.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _in_the_loop(monkeypatch):
    """Tests look at what analyses do, so by default they run where the test runs."""
    monkeypatch.setattr("ncp_callbacks.observer.placement.why_in_loop", lambda nbytes: "a test")
