"""Measure how far, how fast and how straight the hidden state moves."""
