"""Replace features and blocks of time by those of other sequences."""
