from hypothesis import settings

# Machines differ in speed, and a failure must come back when the test is run again.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("repeatable")
