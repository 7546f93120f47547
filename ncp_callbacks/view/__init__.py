"""Show the arrays of all runs in one interactive page: side by side, with one slider.

::

    ncp-callbacks view runs/        # a page of its own, which follows live training
    tensorboard --logdir runs/      # the tab "Interpretability"

The log is read by :mod:`.index`, or by :mod:`.provider` if it is on another machine. :mod:`.api`
answers what the page asks for, whoever serves it: :mod:`.serve` (the command) or :mod:`.tab`
(TensorBoard). :mod:`.page` makes one HTML file that needs neither. Nothing here needs MLX.
"""
