"""Measure how the units of the backbone are used."""
