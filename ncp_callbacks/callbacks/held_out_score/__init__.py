"""Measure how good the model is on the held-out batch."""
