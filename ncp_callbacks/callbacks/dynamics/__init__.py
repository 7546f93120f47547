"""Measure stability and memory of the recurrent dynamics."""
