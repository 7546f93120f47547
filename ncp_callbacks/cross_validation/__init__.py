"""Repeat a training, or read repeated runs, and count how often each finding comes back.

- :mod:`.training`: train and analyse a model for each seed and fold, in parallel;
- :mod:`.logged`: the same numbers from runs that are logged already, without MLX;
- :mod:`.questions`: what is asked of each repetition;
- :mod:`.result`: how often answers come back, and how far numbers spread;
- :mod:`.plot`: both in one picture.
"""
