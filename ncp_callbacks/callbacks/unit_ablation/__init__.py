"""Clamp one unit of a state at a time to its mean, and measure what changes."""
