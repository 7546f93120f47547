"""Every way to attach a monitor to a loop, with what goes wrong in loops."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from small_nets import Net

import ncp_callbacks as ncp


class Weight(ncp.Callback):
    """Log the bias of the head, which tells whose parameters were analysed."""

    default_name = "weight"

    def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
        yield ncp.Scalar("weight/analysed", float(observation.step))


X = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)


def monitor(model: nn.Module | None = None, **options: Any) -> tuple[ncp.Monitor, Any]:
    writer = ncp.MemoryWriter()
    given = {"every": 1, "background": False, "writer": writer, **options}
    return ncp.Monitor(model or Net(), ncp.HeldOutBatch(X), [Weight()], **given), writer


def analysed(writer: Any) -> list[int]:
    return [step for step, _ in writer.scalars("weight/analysed")]


def losses(writer: Any) -> list[tuple[int, float]]:
    return list(writer.scalars("train/loss"))


# ---- steps


def test_steps_start_count_report_and_close() -> None:
    watch, writer = monitor()
    seen = [(step, batch) for step, batch in watch.steps("abc")]
    assert seen == [(1, "a"), (2, "b"), (3, "c")]
    assert watch.state == "closed"
    assert analysed(writer) == [1, 2, 3]


def test_a_step_that_the_body_reports_is_not_reported_twice() -> None:
    watch, writer = monitor()
    for step, batch in watch.steps([0.5, 0.25]):
        watch.on_step_end(step, loss=batch)
    assert losses(writer) == [(1, 0.5), (2, 0.25)]
    assert watch.notes == ()


def test_epochs_of_a_function_count_on() -> None:
    watch, writer = monitor(every=2)
    steps = [step for step, _ in watch.steps(lambda: iter([1, 2, 3]), epochs=2)]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert analysed(writer) == [2, 4, 6]


def test_steps_inside_of_a_block_leave_it_open_and_count_on() -> None:
    watch, writer = monitor()
    with watch:
        for _ in range(2):
            for _step, _batch in watch.steps([1, 2]):
                pass
            assert watch.state == "open"
    assert analysed(writer) == [1, 2, 3, 4]


def test_leaving_the_loop_closes_the_run_and_drops_the_unfinished_step() -> None:
    watch, writer = monitor()
    for step, _batch in watch.steps([1, 2, 3]):
        if step == 2:
            break
    assert watch.state == "closed"
    assert analysed(writer) == [1]


def test_a_generator_that_is_never_iterated_or_closed_early_starts_nothing() -> None:
    watch, _ = monitor()
    iterator = watch.steps([1])
    iterator.close()  # type: ignore[attr-defined]
    assert watch.state == "not started"


def test_errors_of_the_loop_and_of_the_loader_pass_and_close() -> None:
    def loader() -> Iterator[int]:
        yield 1
        raise OSError("no such file")

    watch, writer = monitor()
    with pytest.raises(OSError, match="no such file"):
        list(watch.steps(loader()))
    assert watch.state == "closed"
    assert analysed(writer) == [1]

    watch, writer = monitor()
    with pytest.raises(KeyError):  # noqa: PT012
        for step, _batch in watch.steps([1, 2]):
            if step == 2:
                raise KeyError
    assert watch.state == "closed"
    assert analysed(writer) == [1]


def test_wrong_arguments_of_steps() -> None:
    watch, _ = monitor()
    with pytest.raises(TypeError, match="batches is a int"):
        watch.steps(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epochs=0"):
        watch.steps([1], epochs=0)
    with pytest.raises(ValueError, match="which ends after the first epoch"):
        watch.steps(iter([1]), epochs=2)
    with pytest.raises(TypeError, match="first='1'"):
        watch.steps([1], first="1")  # type: ignore[arg-type]
    list(watch.steps([1]))
    with pytest.raises(RuntimeError, match="pass epochs="):
        watch.steps([1])


def test_the_bar_counts_steps(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    watch, _ = monitor()
    list(watch.steps([1, 2, 3], epochs=2, bar=True))
    assert "6/6" in capsys.readouterr().err


def test_without_tqdm_the_loop_goes_on_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError):
        importlib.import_module("tqdm.auto")
    watch, writer = monitor()
    list(watch.steps([1, 2], bar=True))
    assert analysed(writer) == [1, 2]
    assert "pip install tqdm" in watch.notes[0]


def test_steps_of_two_monitors_nest() -> None:
    (outer, first), (inner, second) = monitor(), monitor()
    for step, (same, batch) in outer.steps(inner.steps([0.5, 0.25])):
        assert step == same
        outer.on_step_end(step, loss=batch)
    assert analysed(first) == analysed(second) == [1, 2]
    assert outer.state == inner.state == "closed"


# ---- a step function


def test_a_decorated_function_reports_its_loss_and_returns_what_it_did() -> None:
    watch, writer = monitor()

    @watch.attach
    def step(x: float, *, scale: float = 1.0) -> Any:
        """Make a step."""
        return mx.array(x * scale), "more"

    assert step.__doc__ == "Make a step."
    assert step(0.5)[1] == "more"
    step(0.5, scale=0.5)
    watch.close()
    assert losses(writer) == [(1, 0.5), (2, 0.25)]
    assert step(2.0)[0].item() == 2.0  # After the run it is the function alone.


@pytest.mark.parametrize(
    ("result", "names", "logged"),
    [
        (0.5, ("loss",), {"train/loss": 0.5}),
        (mx.array([0.5]), ("loss",), {"train/loss": 0.5}),
        ((0.5, 7), ("loss", "tokens"), {"train/loss": 0.5, "train/tokens": 7.0}),
        ({"loss": 0.5, "step": 3, "text": "no"}, ("loss",), {"train/loss": 0.5}),
        (None, ("loss",), {}),
        (mx.zeros((2, 2)), ("loss",), {}),
    ],
)
def test_what_step_functions_return(result: Any, names: Any, logged: dict[str, float]) -> None:
    watch, writer = monitor()
    watch.attach(lambda: result, names=names)()
    watch.close()
    tags = [tag for tag in writer.tags if tag.startswith("train/")]
    assert {tag: writer.scalars(tag)[0][1] for tag in tags} == logged
    assert watch.notes == ()


def test_an_attached_compiled_step_reports_every_call_and_trains_alike() -> None:
    def trained(attach: bool) -> list[float]:
        mx.random.seed(0)
        model = Net()
        optimizer = optim.SGD(0.1)
        state = [model.state, optimizer.state]
        loss_and_grad = nn.value_and_grad(model, lambda x, y: ((model(x) - y) ** 2).mean())

        def update(x: mx.array, y: mx.array) -> mx.array:
            loss, grads = loss_and_grad(x, y)
            optimizer.update(model, grads)
            return loss

        step = mx.compile(update, inputs=state, outputs=state)
        watch, writer = monitor(model)
        if attach:
            step = watch.attach(step)
        else:
            watch.start()
        found = []
        for n in range(1, 4):
            loss = step(mx.array(X), mx.ones(4))
            if not attach:
                watch.on_step_end(n, loss=loss)
            found.append(loss.item())
        watch.close()
        assert losses(writer) == list(enumerate(found, start=1))
        assert found[2] < found[0]
        return found

    assert trained(True) == trained(False)


def test_a_function_attached_below_mx_compile_is_refused_by_its_first_call() -> None:
    watch, _ = monitor()
    step = mx.compile(watch.attach(lambda x: x.sum()))
    with pytest.raises(RuntimeError, match=r"above @mx\.compile"):
        step(mx.array([1.0, 2.0]))
    assert watch.state == "not started"


def test_an_asynchronous_step_is_reported_when_it_is_done() -> None:
    watch, writer = monitor()

    @watch.attach
    async def step(loss: float) -> float:
        await asyncio.sleep(0)
        assert len(losses(writer)) == (0 if loss == 0.5 else 1)
        return loss

    async def main() -> None:
        await step(0.5)
        await step(0.25)

    asyncio.run(main())
    watch.close()
    assert losses(writer) == [(1, 0.5), (2, 0.25)]


def test_a_step_that_fails_is_not_reported_and_its_error_passes() -> None:
    watch, writer = monitor()

    @watch.attach
    def step(fails: bool) -> float:
        if fails:
            raise ZeroDivisionError
        return 1.0

    with pytest.raises(ZeroDivisionError):
        step(True)
    step(False)
    watch.close()
    assert losses(writer) == [(1, 1.0)]


def test_what_makes_no_step_is_refused() -> None:
    watch, _ = monitor()

    def batches() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"monitor\.steps"):
        watch.attach(batches)
    with pytest.raises(TypeError, match="attach\\(\\) got a int"):
        watch.attach(3)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="first='1'"):
        watch.attach(print, first="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="names='loss'"):
        watch.attach(print, names="loss")


def test_a_method_of_a_trainer_is_attached() -> None:
    class Trainer:
        def step(self, loss: float) -> float:
            return loss

        def fit(self) -> None:
            for loss in (0.5, 0.25):
                self.step(loss)

    watch, writer = monitor()
    trainer = Trainer()
    trainer.step = watch.attach(trainer.step)  # type: ignore[method-assign]
    trainer.fit()
    watch.close()
    assert losses(writer) == [(1, 0.5), (2, 0.25)]


# ---- trainers that call back


class HuggingFaceStyle:
    """Call back as the trainers of transformers and of unsloth-zoo for MLX do."""

    def __init__(self, callbacks: list[Any]) -> None:
        self.callbacks = callbacks
        self.state = SimpleNamespace(global_step=0, epoch=0.0)
        self.control = SimpleNamespace(should_training_stop=False)

    def call(self, event: str, **others: Any) -> None:
        for callback in self.callbacks:
            result = getattr(callback, event)(None, self.state, self.control, model=1, **others)
            assert result is None  # Anything else would replace the control object.

    def train(self, steps: int) -> None:
        self.call("on_train_begin")
        self.call("on_epoch_begin")
        for step in range(1, steps + 1):
            self.call("on_step_begin")
            self.call("on_pre_optimizer_step")
            self.call("on_optimizer_step")
            self.state.global_step = step
            self.call("on_step_end")
            self.call("on_log", logs={"loss": 1.0 / step, "learning_rate": 0.1, "note": "x"})
        metrics = {"eval_loss": 0.25}
        self.call("on_log", logs=metrics)
        self.call("on_evaluate", metrics=metrics)
        self.call("on_epoch_end")
        self.call("on_train_end")


def test_a_trainer_of_hugging_face_style_callbacks() -> None:
    watch, writer = monitor(every=2)
    trainer = HuggingFaceStyle([ncp.TrainerCallback(watch)])
    trainer.train(4)
    assert watch.state == "closed"
    assert analysed(writer) == [2, 4]
    assert losses(writer) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert writer.scalars("val/loss") == [(4, 0.25)]
    assert "train/note" not in writer.tags
    trainer.call("on_log", logs={"loss": 9.0})  # Nothing is raised after the end.


@pytest.mark.parametrize("number", [0.5, mx.array(0.5), np.float32(0.5), np.array(0.5)])
def test_numbers_of_any_kind_that_a_trainer_logs(number: Any) -> None:
    watch, writer = monitor()
    trainer = HuggingFaceStyle([ncp.TrainerCallback(watch)])
    trainer.call("on_train_begin")
    trainer.call("on_log", logs={"loss": number, "eval_loss": number, "done": True, "x": [1]})
    trainer.call("on_train_end")
    assert losses(writer) == [(0, 0.5)]
    assert writer.scalars("val/loss") == [(0, 0.5)]
    assert not {"train/done", "train/x"} & set(writer.tags)


def test_a_monitor_that_was_started_stays_open_after_the_trainer() -> None:
    watch, writer = monitor()
    with watch:
        HuggingFaceStyle([ncp.TrainerCallback(watch)]).train(2)
        assert watch.state == "open"
    assert analysed(writer) == [1, 2]


def test_the_events_of_transformers_are_all_there() -> None:
    # The names of transformers.TrainerCallback, each of which its handler calls unasked.
    events = (
        "init_end train_begin train_end epoch_begin epoch_end step_begin pre_optimizer_step "
        "optimizer_step substep_end step_end evaluate predict save log prediction_step push_begin"
    )
    for event in events.split():
        assert callable(getattr(ncp.TrainerCallback, f"on_{event}"))


@pytest.mark.parametrize(
    "call",
    [
        lambda hook, step, loss: hook(step, 10, loss),
        lambda hook, step, loss: hook(step, loss=loss),
        lambda hook, step, loss: hook({"global_step": step, "loss": loss}),
        lambda hook, step, loss: hook({"step": step, "train_loss": loss, "name": "x"}),
        lambda hook, step, loss: hook(step, {"loss": mx.array(loss)}),
    ],
)
def test_a_hook_of_reports(call: Any) -> None:
    watch, writer = monitor()
    hook = ncp.ReportHook(watch, "total", "loss")
    call(hook, 10, 0.5)
    call(hook, 20, 0.25)
    watch.close()
    assert losses(writer) == [(10, 0.5), (20, 0.25)]
    call(hook, 30, 0.125)  # Nothing is raised after the end.


def test_a_hook_of_evaluations_reports_no_step() -> None:
    watch, writer = monitor()
    ncp.ReportHook(watch, "loss", prefix="val")(10, 0.5)
    watch.close()
    assert writer.scalars("val/loss") == [(10, 0.5)]
    assert watch.reported_steps == 0


def test_a_report_without_a_step() -> None:
    watch, _ = monitor()
    with pytest.raises(TypeError, match="the report has no step"):
        ncp.ReportHook(watch)({"loss": 0.5})
