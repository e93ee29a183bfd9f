"""Wrong values for every kind of argument of the torch-side functions, and what a refusal has to look like.

A kind is a small record; :func:`wrong_values` yields what is wrong for it. test_public.py says which argument is what.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

INPUTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(12) % 3
NOTHING = object()  # an object that is no argument of anything


class Anything(NamedTuple):
    """An argument that takes every value (it is stored, or not read)."""


class Model(NamedTuple):
    """A model: whether its weights must be finite and have values, and whether it must have Linear layers."""

    weights: bool = True
    layers: bool = True


class Items(NamedTuple):
    """Data: whether NaN and infinity in inputs are wrong, whether a model takes the inputs, and a loss the targets."""

    finite: bool = True
    runs: bool = True
    fits: bool = False


class Inputs(NamedTuple):
    """Example inputs of a model."""


class Layers(NamedTuple):
    """Names and modules."""


class Patterns(NamedTuple):
    """Name patterns and types of layers."""


class File(NamedTuple):
    """A path of a file."""


class Number(NamedTuple):
    """A number: wrong values, beside those of other types."""

    wrong: tuple
    integer: bool = False


class Function(NamedTuple):
    """A callable: wrong ones, beside what is no callable."""

    wrong: tuple = ()


class Flag(NamedTuple):
    """A bool."""


class Choice(NamedTuple):
    """One of a closed set: wrong values, beside those of other types."""

    wrong: tuple = ()


def model() -> nn.Sequential:
    """A model with everything that a failed call could change: masks, batch statistics, gradients, mixed modes."""
    import pycompress as pc

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    pc.prune_(made, sparsity=0.25)
    pc.quantize_(made, pc.Int8(), include=["0"])
    made[1].eval()
    made[4].bias.requires_grad_(False)
    made[0].weight.grad = torch.full((6, 4), 0.5)
    return made


def state(made: nn.Module) -> dict[str, Any]:
    """Everything of a model that a failed call must leave as it is, comparable by ``==``."""
    found: dict[str, Any] = {}
    for path, module in made.named_modules():
        found[path] = module.training, type(module), sorted(module.__dict__)
        found[path, "hooks"] = len(module._forward_pre_hooks), len(module._forward_hooks)
        for name, tensor in itertools.chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None:
                gradient = None if tensor.grad is None else bits(tensor.grad)
                found[path, name] = id(tensor), tensor.requires_grad, bits(tensor), gradient
    return found


def bits(tensor: torch.Tensor) -> Any:
    if tensor.is_meta or nn.parameter.is_lazy(tensor):
        return "no values"
    return tensor.shape, tensor.dtype, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).tolist()


def broken(value: float, attribute: str = "weight") -> nn.Sequential:
    made = model()
    getattr(made[4], attribute).data.view(-1)[0] = value
    return made


class Broken(Dataset):
    """Holds what is no pair, or fewer items than it says."""

    def __init__(self, item: object, length: int = 3) -> None:
        self.item, self.length = item, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> object:
        return self.item


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter([(INPUTS[0], CLASSES[0])])


def wrong_models(kind: Model) -> Iterator[Any]:
    yield from (None, "model", 3, nn.Linear, [nn.Linear(4, 3)], {"0": nn.Linear(4, 3)}, lambda x: x, NOTHING, INPUTS)
    if kind.weights:
        for value in (np.nan, np.inf, -np.inf):
            yield broken(value)
        yield model().to("meta")
        yield nn.Sequential(nn.LazyLinear(6), nn.LazyLinear(3))
    if kind.layers:
        yield from (nn.Sequential(), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Sigmoid()))


def wrong_data(kind: Items) -> Iterator[Any]:
    yield from (None, "data", b"data", 3, 2.5, NOTHING, INPUTS, INPUTS.numpy(), {"inputs": INPUTS}, {1, 2}, Dataset)
    yield from ((), (INPUTS,), (INPUTS, CLASSES, CLASSES), [], [INPUTS], [3], [None], ["ab"], [(INPUTS, CLASSES, 1)])
    yield iter([(INPUTS, CLASSES)])
    yield ((INPUTS, CLASSES) for _ in range(1))
    yield zip(INPUTS, CLASSES, strict=True)
    yield from (Endless(), Broken(INPUTS[0]), Broken(None), Broken((INPUTS[0], CLASSES[0]), length=0))
    yield from ((INPUTS[:0], CLASSES[:0]), (INPUTS, CLASSES[:5]), (INPUTS, None), (None, CLASSES))
    yield from ((INPUTS.tolist(), CLASSES), (INPUTS, "classes"), (INPUTS, 3), (INPUTS[0, 0], CLASSES[0]))
    for dtype in ("U3", "S3", "O", "V4", "datetime64[s]"):
        yield np.zeros((12, 4), dtype), CLASSES
    yield INPUTS.to("meta"), CLASSES
    yield INPUTS, CLASSES.to("meta")
    yield [(INPUTS, CLASSES), (INPUTS, CLASSES[:5])]
    yield TensorDataset(INPUTS[:0], CLASSES[:0])
    if kind.finite:
        for value in (np.nan, np.inf, -np.inf):
            inputs = INPUTS.clone()
            inputs[7, 2] = value
            yield from ((inputs, CLASSES), (inputs.numpy(), CLASSES.numpy()), [(INPUTS, CLASSES), (inputs, CLASSES)])
            yield TensorDataset(inputs, CLASSES)
    if kind.runs:
        yield from ((INPUTS[:, :3], CLASSES), (INPUTS[:, 0], CLASSES), (INPUTS.long(), CLASSES))
        yield from ((INPUTS.to(torch.complex64), CLASSES), ((INPUTS, INPUTS), CLASSES), ({"rows": INPUTS}, CLASSES))
        yield DataLoader(TensorDataset(INPUTS[:, :3], CLASSES), 4, generator=torch.Generator())
    if kind.fits:
        yield from ((INPUTS, CLASSES + 1), (INPUTS, CLASSES - 1), (INPUTS, INPUTS[:, 0]))
        yield from ((INPUTS, CLASSES[:, None]), (INPUTS, (CLASSES, CLASSES)))


def wrong_inputs() -> Iterator[Any]:
    yield from ("inputs", 3, NOTHING, [], (), {}, INPUTS[:, :3], INPUTS[0, 0], INPUTS[:, :, None], INPUTS.long())
    yield from (INPUTS.to(torch.complex64), (INPUTS, INPUTS), {"rows": INPUTS}, np.zeros((2, 4), "U3"), nn.Linear)
    yield INPUTS.to("meta")


def wrong_layers() -> Iterator[Any]:
    yield from (None, "0", 3, [nn.Linear(4, 3)], {"0": None}, {"0": "layer"}, {"0": nn.Linear}, {"0": INPUTS}, NOTHING)
    yield from ({"0": nn.ReLU()}, {"0": broken(np.nan)[4]}, {"0": nn.Linear(4, 3, device="meta")})


def wrong_patterns() -> Iterator[Any]:
    yield from ("0", nn.Linear, 3, 2.5, [3], [None], [["0"]], ["missing*"], ["0", "missing"], [nn.LSTM], NOTHING, True)
    yield from ((name for name in ["0"]), iter(["0"]), {"0": True}, [NOTHING], [int], ["0.weight"], [b"0"], np.ones(2))


def wrong_numbers(kind: Number) -> Iterator[Any]:
    yield from kind.wrong
    yield from ("3", "", b"3", [3], (3,), {}, NOTHING, True, 3j, np.ones(3), torch.ones(3), np.array("3"), int)
    if kind.integer:
        yield from (3.0, np.float32(3), np.nan, np.inf, torch.tensor(3.5))


def wrong_functions(kind: Function) -> Iterator[Any]:
    yield from kind.wrong
    yield from ("function", b"function", 3, 2.5, [], {}, NOTHING, [len], INPUTS)


def wrong_choices(kind: Choice) -> Iterator[Any]:
    yield from kind.wrong
    yield from ("", "nonsense", b"nonsense", 7, 2.5, [], ["nonsense"], NOTHING, np.ones(3), INPUTS)


def wrong_values(kind: Any) -> Iterator[Any]:
    """What is wrong for an argument of this kind; None is left to the caller."""
    makers: dict[type, Callable[[], Iterator[Any]]] = {
        Anything: lambda: iter(()),
        Model: lambda: wrong_models(kind),
        Items: lambda: wrong_data(kind),
        Inputs: wrong_inputs,
        Layers: wrong_layers,
        Patterns: wrong_patterns,
        Number: lambda: wrong_numbers(kind),
        Function: lambda: wrong_functions(kind),
        Flag: lambda: iter(("yes", "", 0, 1, 0.5, [], NOTHING, np.ones(3), torch.ones(2))),
        File: lambda: iter(("", "a\0b", b"bytes", 3, 2.5, [], ["path"], NOTHING, np.ones(3), INPUTS)),
        Choice: lambda: wrong_choices(kind),
    }
    return makers[type(kind)]()


def refusal(call: Callable[..., Any], arguments: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Call with wrong arguments; return a complaint when that is not refused in the right way, or changes a model."""
    models = [value for value in arguments.values() if isinstance(value, nn.Module)]
    before, random = [state(made) for made in models], torch.get_rng_state()
    try:
        call(**arguments)
    except (TypeError, ValueError) as error:
        words = re.findall(r"\w+", str(error))
        complaint = None if set(names) & set(words) else f"{error!r:.300} does not name {names[0]}"
    except Exception as error:
        complaint = f"{type(error).__name__}: {error!s:.300}"
    else:
        complaint = "accepted"
    if [state(made) for made in models] != before:
        complaint = f"{complaint or 'refused'}, and a model was changed"
    if not torch.equal(random, torch.get_rng_state()):
        complaint = f"{complaint or 'refused'}, and torch's random numbers moved"
    return complaint


def shown(value: Any) -> str:
    """Write a value for a complaint, in one line."""
    return re.sub(r"\s+", " ", repr(value))[:120]
