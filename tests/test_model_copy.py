"""A copy of a model has everything that the model has, and shares nothing with it."""

from __future__ import annotations

import contextlib
import functools
import queue
import random
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import zoo
from tqdm import tqdm
from zoo import EXAMPLES

import ncp_callbacks as ncp
from ncp_callbacks.model import CopyError, ModelCopy, Subject
from ncp_callbacks.model.copy_faults import difference
from ncp_callbacks.model.model_copy import set_evaluation_mode
from ncp_callbacks.model.pytrees import modules

B, T, F = 4, 5, 3
places = pytest.mark.parametrize("background", [False, True], ids=["in the loop", "background"])


def bits(array: mx.array | np.ndarray) -> tuple[object, ...]:
    """Type, shape and every bit; NaN equals itself."""
    if isinstance(array, np.ndarray):
        return array.dtype, array.shape, array.tobytes()
    size = array.dtype.size
    kind = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[size]
    with mx.stream(mx.cpu):
        flat = mx.contiguous(array).reshape(-1)
        raw = flat if array.dtype == mx.bool_ else flat.view(kind)
        return array.dtype, array.shape, repr(raw.tolist())


def arrays(value: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Every array that hangs on an object, wherever Python lets it, with a path."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    if isinstance(value, mx.array | np.ndarray):
        yield path, value
        return
    if isinstance(value, dict):
        for key, part in dict.items(value):
            yield from arrays(part, f"{path}[{key!r}]", seen)
    elif isinstance(value, list | tuple | deque):
        for index, part in enumerate(value):
            yield from arrays(part, f"{path}[{index}]", seen)
    for name, part in list(getattr(value, "__dict__", {}).items()):
        yield from arrays(part, f"{path}.{name}", seen)
    for cell in getattr(value, "__closure__", None) or ():
        with contextlib.suppress(ValueError):
            yield from arrays(cell.cell_contents, f"{path}()", seen)


# ---- every kind of model


@pytest.mark.parametrize("name", EXAMPLES)
def test_copies_of_the_zoo(name: str) -> None:
    case = EXAMPLES[name]
    model, (x, dt) = zoo.made(case), zoo.data(case)
    call = case.forward or case.plain
    mx.eval(call(model, x, dt))  # which makes some weights
    set_evaluation_mode(model)  # as copies are; MLX's own never returns from a cycle
    copied = ModelCopy.of(Subject(model)).model
    assert difference(model, copied) is None
    assert difference(copied, model) is None
    mine, other = dict(arrays(model)), dict(arrays(copied))
    assert mine.keys() == other.keys()
    assert mine
    assert {p: bits(a) for p, a in mine.items()} == {p: bits(a) for p, a in other.items()}
    assert not {id(a) for a in mine.values()} & {id(a) for a in other.values()}
    pairs = zip(modules(model), modules(copied), strict=True)
    for (path, module), (copied_path, copied_module) in pairs:
        assert path == copied_path
        assert module is not copied_module
        assert module._no_grad == copied_module._no_grad
    outputs = []
    for each in (model, copied):
        mx.random.seed(3)
        outputs.append(bits(call(each, x, dt)))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("name", EXAMPLES)
def test_writes_in_place_reach_neither(name: str) -> None:
    model = zoo.made(EXAMPLES[name])
    copy = ModelCopy.of(Subject(model))
    before = {path: bits(array) for path, array in arrays(model)}

    def overwrite(owner: Any) -> None:
        for _, array in arrays(owner):
            array[...] = array == 0 if str(array.dtype).endswith("bool") else array * 0 + 1

    overwrite(copy.model)
    changed = {path: bits(array) for path, array in arrays(copy.model)}
    assert not changed or changed != before or set(before.values()) == set(changed.values())
    assert {path: bits(array) for path, array in arrays(model)} == before
    copy.reload()
    assert {path: bits(array) for path, array in arrays(copy.model)} == before
    overwrite(model)
    assert {path: bits(array) for path, array in arrays(copy.model)} == before
    copy.reload()
    assert {path: bits(array) for path, array in arrays(copy.model)} == before


# ---- every kind of state


class Holder:
    """A plain object, as caches are."""

    def __init__(self) -> None:
        self.keys, self.offset, self.norm = mx.zeros((2, 2)), 0, nn.BatchNorm(2)


class Slotted:
    __slots__ = ("array", "count", "unset")

    def __init__(self) -> None:
        self.count, self.array = 0, mx.zeros((2,))


@dataclass
class Record:
    count: int = 0
    values: list[int] = field(default_factory=list)
    array: mx.array = field(default_factory=lambda: mx.zeros((2,)))


def counter() -> Callable[[], int]:
    count = 0

    def call() -> int:
        nonlocal count
        count += 1
        return count

    return call


# Functions and classes as of a notebook: nobody can import them, so they are pickled by value.
NOTEBOOK: dict[str, Any] = {"__name__": "cell_of_a_notebook"}
exec(
    """
calls = [0]
def counting():
    calls[0] += 1
    return calls[0]

def closure():
    count = [0]
    def call():
        count[0] += 1
        return count[0]
    return call

class ByValue:
    made = 0
    register = []
    def __init__(self):
        self.number = 0
    def bump(self):
        type(self).made += 1
        type(self).register.append(1)
        self.number += 1
""",
    NOTEBOOK,
)


class Cluttered(nn.Module):
    """Keeps things wherever Python lets it."""

    __slots__ = ("empty_slot", "slot")

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.count, self.half = mx.array(3), mx.ones((4,), mx.float16)
        self.key = mx.random.key(3)
        self.plain, self.slot = 1, 1
        self.nested = [{"a": [mx.zeros((2,))]}, (nn.Dropout(0.5), [1, 2])]
        self.numbers, self.names, self.recent = np.zeros(3), {"a"}, deque([1], maxlen=2)
        self.large = np.zeros((100, 100))
        self.ordered = OrderedDict(a=1, b=2)
        self.generator, self.dice = np.random.default_rng(1), random.Random(1)
        self.legacy = np.random.RandomState(1)
        self.holder, self.slotted, self.record = Holder(), Slotted(), Record()
        self.text = bytearray(b"abc")
        self.counter, self.partial = NOTEBOOK["closure"](), functools.partial(counter())
        self.counting, self.by_value = NOTEBOOK["counting"], NOTEBOOK["ByValue"]()
        object.__setattr__(self, "hidden", {"list": [1], "set": {1}})

    def disturb(self) -> None:
        """Change each of them."""
        self.count += 1
        self.half[1] = 7
        self.key, _ = mx.random.split(self.key)
        self.plain = self.slot = self.empty_slot = 2
        self.added, self.array_added = 1, mx.array(1)
        self.lin.weight = self.lin.weight + 1
        self.lin.bias[0] = mx.nan
        self.nested[0]["a"][0] += 1
        self.nested[0]["b"] = 1
        self.nested[1][1].append(3)
        self.nested.append(4)
        self.numbers += 1
        self.large[3] = 1
        self.names.add("b")
        self.recent.append(2)
        self.recent.append(3)
        self.ordered.move_to_end("a")
        self.ordered["c"] = 3
        self.generator.random()
        self.dice.random()
        self.legacy.random_sample()
        self.holder.keys[0] = 1
        self.holder.offset += 1
        self.holder.norm(mx.ones((3, 2)) * 5)
        self.slotted.count += 1
        self.slotted.array += 1
        self.slotted.unset = 1
        self.record.count += 1
        self.record.values.append(1)
        self.record.array += 1
        self.text += b"d"
        self.counter()
        self.partial()
        self.counting()
        self.by_value.bump()
        self.hidden["list"].append(2)
        self.hidden["set"].add(2)
        self.lin.freeze()
        self.lin.train()

    def everything(self) -> dict[str, Any]:
        """Each of them, so that none can change unnoticed."""
        legacy = self.legacy.get_state()
        return {
            "count": bits(self.count), "half": bits(self.half), "key": bits(self.key),
            "weight": bits(self.lin.weight), "bias": bits(self.lin.bias),
            "nested array": bits(self.nested[0]["a"][0]), "nested dict": list(self.nested[0]),
            "nested list": list(self.nested[1][1]), "nested": len(self.nested),
            "plain": self.plain, "slot": self.slot, "empty slot": hasattr(self, "empty_slot"),
            "added": hasattr(self, "added"), "array added": "array_added" in self,
            "numbers": bits(self.numbers), "large": bits(self.large), "names": set(self.names),
            "recent": list(self.recent), "ordered": list(self.ordered.items()),
            "generator": self.generator.bit_generator.state, "dice": self.dice.getstate(),
            "legacy": (legacy[1].tobytes(), legacy[2]),
            "holder array": bits(self.holder.keys), "holder": self.holder.offset,
            "running mean": bits(self.holder.norm.running_mean),
            "slotted": self.slotted.count, "slotted array": bits(self.slotted.array),
            "unset slot": hasattr(self.slotted, "unset"),
            "record": self.record.count, "record list": list(self.record.values),
            "record array": bits(self.record.array), "text": bytes(self.text),
            "closure": self.counter.__closure__[0].cell_contents[0],
            "partial": self.partial.func.__closure__[0].cell_contents,
            "global": self.counting.__globals__["calls"][0],
            "by value": self.by_value.number, "class attribute": type(self.by_value).made,
            "class list": list(type(self.by_value).register),
            "hidden list": list(self.hidden["list"]), "hidden set": set(self.hidden["set"]),
            "frozen": set(self.lin._no_grad), "mode": self.lin._training,
        }  # fmt: skip


def names_that_differ(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    return {name for name in a if a[name] != b[name]}


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_every_kind_of_state_is_put_back(error: type[BaseException] | None) -> None:
    model = Cluttered()
    before = model.everything()
    copy = ModelCopy.of(Subject(model))
    copied: Any = copy.model
    assert difference(model, copied) is None
    expected = copied.everything()
    # A copy is in evaluation mode, in tuples too, where eval() doesn't get.
    assert names_that_differ(before, expected) == {"mode"}
    assert not any(module._training for _, module in modules(copied))
    for _ in range(3):
        with contextlib.suppress(ValueError, KeyboardInterrupt), copy.preserved():
            copied.disturb()
            now = copied.everything()
            assert names_that_differ(expected, now) == expected.keys()
            if error is not None:
                raise error
        assert copy.model is copied
        assert names_that_differ(expected, copied.everything()) == set()
        assert names_that_differ(before, model.everything()) == set()
    assert model.training
    # And the other way: what happens to the model doesn't reach the copy.
    model.disturb()
    assert names_that_differ(expected, copied.everything()) == set()
    copy.reload()
    assert names_that_differ(expected, copied.everything()) == set()


@pytest.mark.parametrize("progress_bar", [False, True])
def test_random_numbers_of_the_process_are_put_back(progress_bar: bool) -> None:
    if progress_bar:  # its monitor is one more thread, which draws no numbers
        bar = tqdm(total=1)
        bar.close()
        assert any(type(t).__module__.startswith("tqdm") for t in threading.enumerate())
    copy = ModelCopy.of(Subject(nn.Linear(2, 2)))
    mx.random.seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    drawn = []
    for _ in range(2):
        with copy.preserved():
            drawn.append(
                (mx.random.normal((3,)).tolist(), random.random(), np.random.random())  # noqa: NPY002
            )
    assert drawn[0] == drawn[1]
    after = (mx.random.normal((3,)).tolist(), random.random(), np.random.random())  # noqa: NPY002
    assert after == drawn[0]


def test_what_functions_share_with_the_model_stays_shared() -> None:
    model = nn.Linear(2, 2)
    table = {"scale": mx.array(2.0)}
    model.table = table

    def forward(module: Any, inputs: Any, time_delta: Any) -> Any:
        return module(inputs) * table["scale"]

    copy = ModelCopy.of(Subject(model, forward))
    assert copy.forward is not None
    assert copy.forward is not forward
    (cell,) = copy.forward.__closure__  # type: ignore[attr-defined]
    assert cell.cell_contents is copy.model.table
    copy.model.table["scale"] = mx.array(5.0)
    assert table["scale"].item() == 2.0


def test_arrays_held_twice_are_one_in_the_copy() -> None:
    model = Cluttered()
    model.again, model.holder.alias = model.lin, model.lin.weight
    copied: Any = ModelCopy.of(Subject(model)).model
    assert copied.again is copied.lin
    assert copied.holder.alias is copied.lin.weight


def test_a_class_of_the_script_is_never_written_to(tmp_path: Path) -> None:
    """cloudpickle, loading a class in the process that it comes from, would."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import enum
import mlx.core as mx, mlx.nn as nn, numpy as np
import ncp_callbacks as ncp
from ncp_callbacks.models import CfC

class Mode(enum.Enum):
    FAST = 1

class Cell(nn.Module):
    calls, log = 0, []
    def __init__(self):
        super().__init__()
        self.gru, self.mode = nn.GRU(3, 4), Mode.FAST
    def __call__(self, x):
        Cell.calls += 1
        self.__class__.log.append("called")
        assert self.mode is Mode.FAST
        return self.gru(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = Cell(), nn.Linear(4, 1)
    def __call__(self, x):
        return self.out(self.cell(x))

def contents(cls):
    # Python itself notes there what it has found of slots, when it pickles an object.
    return {name: value for name, value in vars(cls).items() if name != "__slotnames__"}

model = Net()
model(mx.ones((2, 5, 3)))
x = np.random.default_rng(0).standard_normal((4, 5, 3)).astype("f")
for background in (False, True):
    classes = {cls: contents(cls) for cls in (Net, Cell, Mode)}
    writer = ncp.MemoryWriter()
    with ncp.Monitor(
        model, ncp.HeldOutBatch(x), writer=writer, every=1, background=background
    ) as monitor:
        for step in (1, 2, 3):
            # A training that goes on changes them, too.
            Cell.calls = step * 100
            monitor.on_step_end(step)
            assert Cell.calls == step * 100, Cell.calls
            assert Cell.log == ["called"], Cell.log
    assert not [note for note in monitor.notes if "fail" in note], monitor.notes
    assert [s for s, _ in writer.scalars("attribution/strength")] == [1, 2, 3]
    Cell.calls = 1
    assert {cls: contents(cls) for cls in (Net, Cell, Mode)} == {
        cls: {**before, **({"calls": 1} if cls is Cell else {})} for cls, before in classes.items()
    }
    assert type(model) is Net and type(model.cell) is Cell and model.cell.mode is Mode.FAST
print("done")
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


# ---- what can't be copied


class Net(nn.Module):
    """``(B, T, F)`` to ``(B, T, 1)``; keeps what it is given beside its parameters."""

    def __init__(self, **kept: Any) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(F, 4), nn.Linear(4, 1)
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out(self.gru(x))


class Opened:
    """Keeps an open file, as loggers of one's own do."""

    def __init__(self) -> None:
        self.file = Path(__file__).open()  # noqa: SIM115


class Forgetful:
    def __init__(self) -> None:
        self.kept, self.cache = 1, [1, 2]

    def __getstate__(self) -> dict[str, Any]:
        return {"kept": self.kept}


class ForgetfulModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.zeros((2,))
        object.__setattr__(self, "cache", [1, 2])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "cache"}


UNCOPIED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "generator": (lambda: (i for i in range(3)), "model.kept", "generator"),
    "nested": (lambda: [{"a": (i for i in range(3))}], r"model.kept\[0\]\['a'\]", "generator"),
    "file": (Opened, "model.kept.file", "it is an open file"),
    "closure over a file": (
        lambda: (lambda opened: lambda: opened.file)(Opened()),
        r"model.kept \(its variable opened\).file",
        "it is an open file",
    ),
    "gradient": (lambda: mx.grad(lambda x: x.sum()), "model.kept", "mx.grad"),
    "vmap": (lambda: mx.vmap(lambda x: x), "model.kept", "mx.vmap"),
    "thread-local": (threading.local, "model.kept", "_thread._local"),
    "left out": (Forgetful, "model.kept.cache", "omits it"),
    "left out of a module": (ForgetfulModule, "model.kept.cache", "omits it"),
}


def surrogate(rule: str) -> Any:
    """Return a step function whose derivative is set by a rule, which may call the function."""

    @mx.custom_function
    def step(x: mx.array) -> mx.array:
        return (x > 0).astype(x.dtype)

    if rule == "vjp":
        step.vjp(lambda x, cotangent, _: cotangent / (1 + 10 * mx.abs(x)) ** 2 + 0 * step(x))
    elif rule == "jvp":
        step.jvp(lambda x, tangent: tangent)
    elif rule == "vmap":
        step.vmap(lambda inputs, axes: (inputs, axes))
    return step


class Spiking(nn.Module):
    """Keeps its step function, as libraries of spiking networks do."""

    def __init__(self, rule: str = "vjp") -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(F, 4), nn.Linear(4, 2)
        self._step = surrogate(rule)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out(mx.cumsum(self._step(self.enter(x)), axis=1))


@places
def test_a_surrogate_gradient_is_copied(background: bool) -> None:
    mx.random.seed(0)
    model, batch, writer = Spiking(), held_out(), ncp.MemoryWriter()
    attribution = ncp.GradientAttribution(method="input_x_gradient", baseline="zeros")
    with ncp.Monitor(
        model, batch, [attribution], writer=writer, every=1, target=0, background=background
    ) as monitor:
        assert monitor.in_background == background
        monitor.on_step_end(1)
    by_hand = batch.inputs * mx.grad(lambda x: model(x)[:, -1, 0].sum())(batch.inputs)
    expected = np.abs(np.array(by_hand)).mean(axis=0).sum()
    assert expected > 0
    ((_, found),) = writer.scalars("attribution_output0/strength")
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rule", ["jvp", "vmap"])
def test_other_rules_of_custom_functions_are_named(rule: str) -> None:
    with pytest.raises(CopyError, match="rule for jvp or vmap"):
        ModelCopy.of(Subject(Spiking(rule)))
    assert ModelCopy.of(Subject(Spiking(""))).model is not None


def held_out() -> ncp.HeldOutBatch:
    x = np.random.default_rng(0).standard_normal((B, T, F)).astype(np.float32)
    return ncp.HeldOutBatch(x)


@places
@pytest.mark.parametrize("kind", UNCOPIED)
def test_what_can_not_be_copied_is_named_with_the_fix(kind: str, background: bool) -> None:
    make, path, why = UNCOPIED[kind]
    model = Net(kept=make())
    monitor = ncp.Monitor(model, held_out(), [], writer=ncp.MemoryWriter(), background=background)
    with pytest.raises(CopyError, match=rf"(?s)^{path} .*{why}.*pass make_model="):
        monitor.start()


@places
@pytest.mark.parametrize("kind", UNCOPIED)
def test_a_function_that_builds_the_model_is_a_way_out(kind: str, background: bool) -> None:
    mx.random.seed(0)
    make = UNCOPIED[kind][0]
    model = Net(kept=make())
    kept = model.kept
    writers = []
    for options in ({}, {"make_model": Net}):
        watched = model
        if not options:
            watched = Net()
            watched.update(model.parameters())
        writers.append(ncp.MemoryWriter())
        with ncp.Monitor(
            watched, held_out(), writer=writers[-1], every=1, background=background, **options
        ) as monitor:
            assert monitor.in_background == background
            for step in (1, 2, 3):
                monitor.on_step_end(step)
                watched.out.weight = watched.out.weight + 0.5
                watched.gru.b = watched.gru.b + 0.1
        if not options:
            model.update(watched.parameters())
            for _ in range(3):
                model.out.weight = model.out.weight - 0.5
                model.gru.b = model.gru.b - 0.1
            mx.eval(model.parameters())
    assert model.kept is kept
    for tag in ("attribution/strength", "hidden/participation_ratio"):
        built, copied = (np.array(writer.scalars(tag)) for writer in writers)
        assert built.shape == (3, 2)
        assert len({value for _, value in built}) == 3
        # The weights went there and back, with rounding.
        np.testing.assert_allclose(built, copied, rtol=1e-4)


def test_built_models_of_another_structure() -> None:
    with pytest.raises(CopyError, match=r"an array gru\.Wx, which the model of make_model"):
        ncp.Monitor(
            Net(), held_out(), [], writer=ncp.MemoryWriter(), make_model=lambda: nn.Linear(F, 4)
        ).start()
    with pytest.raises(CopyError, match=r"make_model\(\) returned a int; return an mlx.nn.Module"):
        ncp.Monitor(Net(), held_out(), [], writer=ncp.MemoryWriter(), make_model=lambda: 3).start()


class Referring:
    """Refers to something weakly, and to something that is gone."""

    def __init__(self) -> None:
        self.holder = Holder()
        self.there, self.gone = weakref.ref(self.holder), weakref.ref(Holder())


COPIED: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "reentrant lock": threading.RLock,
    "condition": threading.Condition,
    "event": threading.Event,
    "semaphore": threading.Semaphore,
    "queue": queue.Queue,
    "weak references": Referring,
    "dtype": lambda: [mx.bfloat16, mx.float32],
    "device": lambda: mx.Device(mx.cpu),
    "function of MLX": lambda: [mx.tanh, nn.relu, nn.Tanh()],
    "compiled function": lambda: mx.compile(lambda x: x * 2),
    "random state": lambda: mx.random.state,
    "array function": lambda: functools.partial(mx.sum, axis=1),
}


@places
@pytest.mark.parametrize("kind", COPIED)
def test_what_is_copied_like_anything_else(kind: str, background: bool) -> None:
    model = Net(kept=COPIED[kind]())
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out(), writer=writer, every=1, background=background) as monitor:
        monitor.on_step_end(1)
    assert [step for step, _ in writer.scalars("attribution/strength")] == [1]
    assert not [note for note in monitor.notes if "fail" in note or "can't" in note]


def test_weak_references_refer_to_the_copy() -> None:
    model = Net(kept=Referring())
    copied: Any = ModelCopy.of(Subject(model)).model
    assert copied.kept.there() is copied.kept.holder
    assert copied.kept.there() is not model.kept.holder
    assert copied.kept.gone() is None


def test_locks_of_the_copy_are_its_own() -> None:
    lock = threading.Lock()
    model = Net(kept=lock)
    with lock:
        copied: Any = ModelCopy.of(Subject(model)).model
        assert copied.kept.acquire(blocking=False)
    assert copied.kept is not lock


def test_an_open_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_text("a\nb\n")
    with path.open() as file:
        file.readline()
        with pytest.raises(CopyError, match="open file"):
            ModelCopy.of(Subject(Net(kept=file)))
        assert file.readline() == "b\n"
