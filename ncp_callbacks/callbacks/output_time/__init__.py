"""Attribute the outputs at every time step to the inputs at every time step."""
