"""Other ways to the same analyses, as worker processes that ``cost.py --peers`` times in turn.

* ``torch_captum``: the same model in PyTorch (``ncps.torch``), analysed with Captum, scikit-learn,
  matplotlib and a SummaryWriter.
* ``naive_mlx``: the analyses written down in MLX one by one, each with its own pass.
* ``monitored``: this package, or another version of it.

``cases`` and ``pictures`` need neither MLX nor PyTorch, so that both sides, which may be different
Pythons, share them. ``protocol`` is how they talk.
"""
