"""Analyse a copy of the model, in the training loop's thread or in a process of its own."""
