"""Attribute the target to the pixels of frames, and draw the most important frames."""
