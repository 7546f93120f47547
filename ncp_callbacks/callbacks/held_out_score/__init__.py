"""Attribute the target to features, time steps and elapsed time."""
