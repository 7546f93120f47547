"""Measure how fast the units of a recurrent cell react."""
