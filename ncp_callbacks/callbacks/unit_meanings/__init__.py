"""Describe in words what the units of a state code for."""
