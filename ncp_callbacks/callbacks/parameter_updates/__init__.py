"""Measure how much the parameters change between snapshots."""
