"""Measure how far back along a sequence the target's gradient reaches."""
