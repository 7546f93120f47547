"""Shared parts of drawing."""
