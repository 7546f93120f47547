"""Watch what recurrent networks in MLX attend to while they train.

    import ncp_callbacks as ncp

    held_out = ncp.HeldOutBatch(x_val, time_delta=dt_val)
    with ncp.Monitor(model, held_out, log_dir="runs/cfc-seed0") as monitor:
        for step, (x, dt, y) in enumerate(batches, start=1):
            loss = train_step(x, dt, y)
            monitor.on_step_end(step, loss=loss)

The public names are listed in ``__init__.pyi`` and imported when they are first used.
"""

from ._lazy import attach_stub

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach_stub(__name__)
