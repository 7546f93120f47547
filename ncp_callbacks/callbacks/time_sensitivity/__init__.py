"""Measure how the target reacts when time runs faster or slower."""
