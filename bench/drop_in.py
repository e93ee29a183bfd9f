"""Models by quantize_dynamic, ours and torch's, against the float ones: python bench/drop_in.py --threads 1

Every row is one model at one batch size: medians in microseconds, the paired ratio of torch fp32 and of the fastest
engine of torch's quantize_dynamic over ours with its 95 % interval, and the largest error against the float model, in
root mean squares of its outputs. Nothing but the import differs between the two. Exit code 1: a model of ours is slower
for sure, or further from the float one than torch's. A call of torch's that fails is named on stderr and left out.

--sizes shows instead what the bounds of pycompress/sizes.py come from: single linear and recurrent layers, and encoder
layers on their fused path.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import measure
import torch
from drop_in_models import MODELS
from int8_peers import dynamic_model
from measure import OURS
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import pycompress as pc
from pycompress import sizes
from pycompress.progress import track

FLOAT = "torch fp32"
ENGINES = ("x86", "onednn")
BATCHES = [1, 32]
ROWS = [1, 32, 512]
SHAPES = [
    *((n, n) for n in (16, 32, 64, 96, 128, 192, 256)),
    *((n, 512) for n in (1, 4, 10, 32)),
    *((512, n) for n in (1, 4, 8, 16)),
    (10, 128),
    (128, 64),
    (256, 64),
]
ENCODERS = [(64, 128), (64, 256), (128, 256), (128, 512), (256, 512), (256, 1024)]
HIDDEN = {nn.LSTM: (16, 32), nn.GRU: (8, 16), nn.LSTMCell: (8, 16), nn.GRUCell: (8, 16), nn.RNNCell: (64, 128)}

Row = dict[str, Any]


@dataclass(frozen=True)
class Versions:
    """A model as it is, and what the two functions made of it."""

    models: dict[str, nn.Module]
    inputs: tuple[Any, ...]

    def calls(self) -> dict[str, Callable[[], object]]:
        """Return what is timed."""
        return {name: lambda model=model: model(*self.inputs) for name, model in self.models.items()}  # type: ignore[misc]

    def errors(self) -> dict[str, float]:
        """Return the largest error of each version, in root mean squares of the float outputs."""
        right = self.models[FLOAT](*self.inputs).double()
        scale = float(right.square().mean().sqrt())
        found = {name: model(*self.inputs).double() for name, model in self.models.items() if name != FLOAT}
        return {name: float((y - right).abs().max()) / scale for name, y in found.items()}


@lru_cache(maxsize=2)
def versions(name: str, batch: int) -> Versions:
    """Make a model and its two int8 versions; those of torch that fail are left out."""
    case = MODELS[name]
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(batch)
        model = case.make().eval().requires_grad_(False)
        inputs = case.inputs(batch)
        models: dict[str, nn.Module] = {FLOAT: model, OURS: pc.quantize_dynamic(model)}
        for engine in ENGINES:
            if engine not in torch.backends.quantized.supported_engines:
                continue
            try:
                made = dynamic_model(model, None, engine)
                with torch.no_grad():
                    made(*inputs)
            except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
                print(f"left out: torch int8 {engine}, {name}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            models[f"torch int8 {engine}"] = made
    return Versions(models, inputs)


def check_calls(name: str, batch: int) -> dict[str, Callable[[], object]]:
    """Return what is timed; an error of ours above torch's is an error."""
    found = versions(name, batch)
    wrong = _too_wrong(found.errors())
    if wrong:
        raise AssertionError(f"{name}, batch {batch}: {wrong}")
    return found.calls()


def _too_wrong(errors: dict[str, float]) -> str:
    theirs = [error for name, error in errors.items() if name != OURS]
    if theirs and errors[OURS] > max(theirs):
        return f"ours must be within torch's error of {max(theirs):.4f}, got {errors[OURS]:.4f}"
    return "" if errors[OURS] <= 0.25 else f"ours must be within 0.25 of the float model, got {errors[OURS]:.4f}"


def row(name: str, batch: int, threads: int, effort: measure.Effort) -> Row:
    """Measure one line of the table."""
    found = versions(name, batch)
    calls, errors = found.calls(), found.errors()
    rough = {each: measure.rough_seconds(call) for each, call in calls.items()}
    theirs = [each for each in calls if each not in (OURS, FLOAT)]
    first = min((each for each in calls if each != OURS), key=rough.__getitem__)
    times = measure.interleaved({each: calls[each] for each in (OURS, first)} | calls, effort)
    best = times.best_peer(theirs) if theirs else None
    made: Row = {
        "model": name,
        "batch": batch,
        "threads": threads,
        "fp32_us": times.median(FLOAT) * 1e6,
        "torch_us": {each: times.median(each) * 1e6 for each in theirs},
        "ours_us": times.median(OURS) * 1e6,
        "over_fp32": times.ratio(FLOAT, OURS),
        "over_torch": None if best is None else times.ratio(best, OURS),
        "best_torch": best,
        "error": errors[OURS],
        "torch_error": {each: errors[each] for each in theirs},
        "packed": sum(isinstance(m, pc.layers.PackedLayer) for m in found.models[OURS].modules()),
    }
    ratios = [ratio for ratio in (made["over_fp32"], made["over_torch"]) if ratio is not None]
    packed = made["packed"] or best is None
    slower = any(ratio[2] < 1 for ratio in (ratios if packed else ratios[1:]))
    return made | {"slower": slower, "wrong": _too_wrong(errors)}


def table(rows: list[Row]) -> Table:
    """Make the table of one number of threads."""
    result = Table(title=f"quantize_dynamic, threads {rows[0]['threads']}, medians in us", title_justify="left")
    engines = list(dict.fromkeys(name for row in rows for name in row["torch_us"]))
    headings = ("model", "batch", FLOAT, *engines, OURS, "over fp32", "over torch int8", "error", "torch's error")
    for heading in headings:
        result.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        colour = "[red]" if row["slower"] or row["wrong"] else ""
        errors = list(row["torch_error"].values())
        result.add_row(
            colour + row["model"],
            str(row["batch"]),
            f"{row['fp32_us']:.0f}",
            *(f"{row['torch_us'][name]:.0f}" if name in row["torch_us"] else "fails" for name in engines),
            f"{row['ours_us']:.0f}",
            _ratio(row["over_fp32"]),
            _ratio(row["over_torch"]),
            f"{row['error']:.4f}",
            f"{max(errors):.4f}" if errors else "",
        )
    return result


def _ratio(found: tuple[float, float, float] | None) -> str:
    return "" if found is None else "{:.2f} ({:.2f} to {:.2f})".format(*found)


def size_rows(threads: int) -> Iterator[Row]:
    """Measure single layers: the paired ratio of fp32 over int8, whatever the bounds say of them."""
    torch.manual_seed(0)
    for outputs, inputs in SHAPES:
        layer = nn.Linear(inputs, outputs)
        yield from _sizes("linear", layer, [torch.randn(n, inputs) for n in ROWS], threads)
    for kind, units in HIDDEN.items():
        for n in units:
            steps = () if issubclass(kind, nn.RNNCellBase) else (20,)
            yield from _sizes(
                kind.__name__, kind(n, n), [torch.randn(*steps, rows, n) for rows in (1, 32, 256)], threads
            )
    for width, hidden in ENCODERS:
        encoder = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True)
        yield from _sizes("encoder", encoder, [torch.randn(n, 16, width) for n in (1, 8, 32)], threads)


def _sizes(kind: str, layer: nn.Module, inputs: list[Tensor], threads: int) -> Iterator[Row]:
    with torch.inference_mode(False):
        layer = layer.eval().requires_grad_(False)
        names = {"linear1", "linear2"} if kind == "encoder" else {""}
        packed = pc.quantize_dynamic(layer, names)
    weight = next(p for name, p in layer.named_parameters() if p.ndim == 2 and "attn" not in name)
    for x in inputs:
        calls = {OURS: lambda x=x: packed(x), FLOAT: lambda x=x: layer(x)}
        times = measure.interleaved(calls, measure.Effort(9, 0.5))
        yield {
            "kind": kind,
            "shape": list(weight.shape),
            "rows": x.shape[:-1].numel(),
            "threads": threads,
            "fp32_us": times.median(FLOAT) * 1e6,
            "ours_us": times.median(OURS) * 1e6,
            "over_fp32": times.ratio(FLOAT, OURS),
            "left_dense": bool(sizes.too_small(layer)),
        }


def size_table(rows: list[Row]) -> Table:
    """Make the table of single layers."""
    result = Table(title=f"int8 against fp32, threads {rows[0]['threads']}, medians in us", title_justify="left")
    for heading in ("kind", "weights", "rows", FLOAT, OURS, "over fp32", "left dense"):
        result.add_column(heading, justify="right")
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        times = f"{row['fp32_us']:.1f}", f"{row['ours_us']:.1f}"
        mark = "yes" if row["left_dense"] else "[red]" if row["over_fp32"][2] < 1 else ""
        result.add_row(row["kind"], shape, str(row["rows"]), *times, _ratio(row["over_fp32"]), mark)
    return result


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench/drop_in.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="N")
    parser.add_argument("--sizes", action="store_true", help="single layers of many sizes instead of models")
    parser.add_argument("--json", action="store_true", help="a list of rows on stdout, times in microseconds")
    arguments = parser.parse_args()
    if min(*arguments.threads, *arguments.batches, 1) < 1:
        parser.error("--threads and --batches must be positive")
    rows: list[Row] = []
    tables = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization announces its end
        for threads in arguments.threads:
            with measure.threads(threads), contextlib.redirect_stdout(sys.stderr):
                if arguments.sizes:
                    found = list(size_rows(threads))
                else:
                    points = [(name, batch) for name in arguments.models for batch in arguments.batches]
                    found = [row(*point, threads, measure.QUICK) for point in track(points, f"{threads} threads")]
            rows += found
            tables.append(size_table(found) if arguments.sizes else table(found))
    if arguments.json:
        print(json.dumps(rows))
        return 0 if arguments.sizes else int(any(row["slower"] or row["wrong"] for row in rows))
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    for each in tables:
        console.print(each)
    if arguments.sizes:
        return 0
    bad = [row for row in rows if row["slower"] or row["wrong"]]
    for row_ in bad:
        print(f"{row_['model']}, batch {row_['batch']}: {row_['wrong'] or 'slower'}")
    print(f"{len(rows) - len(bad)} of {len(rows)} are neither slower nor further from the float model")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
