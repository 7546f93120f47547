"""Verify what was inferred about a model, by changing one thing and seeing what moves.

Each module verifies one fact, once, before training. A fact that can't be verified is reported, and
what depends on it is skipped.
"""
