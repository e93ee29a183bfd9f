"""What the examples share: files of installed packages, times side by side, the round trip through a file, printing."""

import argparse
import copy
import json
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import nn

import pycompress as pc
from pycompress import report, timing


def arguments(description):
    """Return a parser with what all examples take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--threads", type=int, default=1, help="threads of all contestants (default 1)")
    return parser


def folder_of(module, requirement):
    """Return the folder of an installed package; it is not imported, since that may need much that is not here."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        leave(f"{module} is missing: pip install --no-deps '{requirement}'")
    return Path(next(iter(spec.submodule_search_locations)))


def leave(message):
    """End with a message and status 1."""
    sys.exit(f"{Path(sys.argv[0]).name}: {message}")


def side_by_side(models, inputs, samples=30):
    """Time models in turns on the same inputs, the first of them against each of the others.

    Returns for each model its milliseconds (median), and for each but the first how many times longer than the first
    it takes: the median of the paired ratios and its 95 % interval.
    """
    with torch.inference_mode():
        calls = [lambda model=model: model(*inputs) for model in models.values()]
        seconds = timing.paired_times(calls, samples=samples, min_block_seconds=5e-3)
    found = {name: {"ms": float(np.median(times)) * 1e3} for name, times in zip(models, seconds, strict=True)}
    for name, times in list(zip(models, seconds, strict=True))[1:]:
        found[name]["times longer"] = timing.ratio_interval(times, seconds[0])
    return found


def torch_dynamic(model):
    """Return what torch's own dynamic quantization makes of a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of its function
        return torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(model), {nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell}
        )


def reloaded(model, make):
    """Save a model, load the file into what ``make`` returns; return that and the size of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        pc.save(model, path)
        return pc.load(path, into=make), path.stat().st_size


def verdict(found):
    """Return what of a comparison belongs into the results."""
    return {
        "original": found.original.value,
        "compressed": found.compressed.value,
        "difference": found.difference,
        "interval": found.interval,
        "margin": found.margin,
        "decision": found.decision,
        "items": found.items,
        **({} if found.agreement is None else {"agreement": found.agreement}),
    }


def show(results, as_json):
    """Print results: JSON, or tables of verdicts, sizes and times."""
    if as_json:
        print(json.dumps(results, indent=2))
        return
    table = Table("", "metric", "original", "compressed", "difference, 95 % interval", "verdict", box=box.SIMPLE_HEAD)
    for name, model in results["models"].items():
        for metric, row in model["verdicts"].items():
            low, high = row["interval"]
            numbers = f"{row['original']:.4f}", f"{row['compressed']:.4f}", f"{row['difference']:+.4f}"
            change = f"{numbers[2]} ({low:+.4f} to {high:+.4f})"
            table.add_row(name, metric, *numbers[:2], change, f"{row['decision']} at {row['margin']:g}")
    sizes = Table("", "bytes", "of the original", "other figures", box=box.SIMPLE_HEAD)
    for name, model in results["models"].items():
        rest = {key: value for key, value in model.items() if key not in ("verdicts", "bytes", "times")}
        others = ", ".join(f"{key}: {value}" for key, value in rest.items())
        sizes.add_row(name, f"{model['bytes']:,}", f"{model['bytes'] / results['original bytes']:.3f}", others)
    times = Table("", "batch", "contestant", "ms", "times longer than ours", box=box.SIMPLE_HEAD)
    for name, model in results["models"].items():
        for batch, rows in model["times"].items():
            for contestant, row in rows.items():
                ratio = "" if "times longer" not in row else "{:.2f} ({:.2f} to {:.2f})".format(*row["times longer"])
                times.add_row(name, str(batch), contestant, f"{row['ms']:.3f}", ratio)
    report.show([table, sizes, times, f"original: {results['original bytes']:,} bytes; threads: {results['threads']}"])
