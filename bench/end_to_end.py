"""Pruned and fine-tuned networks, whole, against dense ones: python bench/end_to_end.py --networks FOLDER

FOLDER is what `examples/patterns.py train` wrote. Of each network the pattern and sparsity of --pick is quantized
(activations with fixed scales for LeNet-300-100 and the FFN, dynamically for MiniLM), packed as `pc.pack` decides and
timed in one process against the dense original: in torch (fp32, its dynamic int8 with either engine), ONNX Runtime and
OpenVINO (int8, dynamic; for LeNet-300-100 and the FFN also static, from one QDQ model), and as our own dense int8 of
the same recipe. The FFN is the stack of MiniLM's six feed-forward parts with their trained weights.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from int8_peers import dynamic_model
from measure import OURS
from rich.console import Console
from rich.table import Table
from runtimes import onnxruntime_session, openvino_request
from torch import Tensor, nn

import pycompress as pc

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
BATCHES = {"lenet_300_100": (1, 32, 128), "ffn": (1, 32, 128), "minilm": (1, 8, 32)}
PRUNED, DENSE = f"{OURS} pruned", f"{OURS} dense int8"
QUANTIZE = """
import sys
from onnxruntime.quantization import QuantType, quantize_dynamic
quantize_dynamic(sys.argv[1], sys.argv[2], per_channel=True, weight_type=QuantType.QInt8)
"""


def networks(folder: Path, name: str, pick: str) -> tuple[nn.Module, nn.Module]:
    """Return an original and its pruned twin."""
    sys.path.insert(0, str(EXAMPLES))  # where the classes of the saved networks are
    source = folder / ("minilm" if name == "ffn" else name)
    found = [torch.load(source / f"{part}.pt", weights_only=False).eval() for part in ("original", pick)]
    if name == "ffn":
        found = [_feed_forward(model) for model in found]
    return found[0].requires_grad_(False), found[1].requires_grad_(False)


def _feed_forward(model: Any) -> nn.Sequential:
    return nn.Sequential(*(part for layer in model.layers for part in (layer.up, nn.GELU(), layer.down))).eval()


def inputs_of(name: str, batch: int) -> tuple[Tensor, ...]:
    """Return inputs: images, rows like those behind a LayerNorm, sentences of 24 tokens."""
    generator = torch.Generator().manual_seed(batch)
    if name == "lenet_300_100":
        return (torch.rand(batch, 1, 28, 28, generator=generator) * (torch.rand(batch, 1, 28, 28) < 0.2) * 3,)
    if name == "ffn":
        return (torch.randn(batch, 384, generator=generator),)
    return torch.randint(1000, 20000, (batch, 24), generator=generator), torch.ones(batch, 24, dtype=torch.int64)


def packed(name: str, model: nn.Module) -> nn.Module:
    """Quantize and pack as a user does."""
    with torch.inference_mode(False):
        result, many = copy.deepcopy(model), inputs_of(name, 256)
        kinds = [nn.Linear]
        if name == "minilm":
            pc.quantize_(result, pc.Int8(), include=kinds)
        else:
            pc.quantize_(result, pc.Int8(), calibration=(many[0], torch.zeros(256)), include=kinds)
        return pc.pack(result, inputs_of(name, 32))


def peers(name: str, model: nn.Module, batch: int, threads: int) -> dict[str, Callable[[], object]]:
    """Return the dense contestants of other libraries."""
    inputs = inputs_of(name, batch)
    found: dict[str, Callable[[], object]] = {"torch fp32": lambda: model(*inputs)}
    for engine in ("x86", "onednn"):
        rounded = dynamic_model(copy.deepcopy(model), {nn.Linear}, engine)
        found[f"torch int8 {engine}"] = lambda rounded=rounded: rounded(*inputs)  # type: ignore[misc]
    arrays = [x.numpy() for x in inputs]
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, part)) for part in ("float.onnx", "dynamic.onnx", "batch.npy", "static.onnx")]
        names = ["x"] if len(inputs) == 1 else ["ids", "mask"]
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr), torch.inference_mode(False):
            warnings.simplefilter("ignore")  # torch announces the end of its exporter without a dependency
            free = {each: {0: "rows"} for each in names}
            torch.onnx.export(
                copy.deepcopy(model), inputs_of(name, batch), paths[0], dynamo=False, input_names=names,
                output_names=["y"], dynamic_axes=free, opset_version=17,
            )  # fmt: skip
        subprocess.run([sys.executable, "-c", QUANTIZE, *paths[:2]], check=True, capture_output=True)
        kinds = {"dynamic": paths[1]}
        if len(inputs) == 1:
            np.save(paths[2], inputs_of(name, 256)[0].numpy())
            script = str(Path(__file__).with_name("quantize_onnx.py"))
            subprocess.run([sys.executable, script, paths[0], paths[2], paths[3]], check=True, capture_output=True)
            kinds["static"] = paths[3]
        feed = dict(zip(names, arrays, strict=True))
        for kind, path in kinds.items():
            session = onnxruntime_session(Path(path).read_bytes(), threads)
            found[f"onnxruntime int8 {kind}"] = lambda session=session: session.run(None, feed)  # type: ignore[misc]
        compressed = openvino_request(_with_int8_weights(paths[0]), threads, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 4096})
        found["openvino int8 dynamic"] = lambda: compressed.infer(arrays, share_inputs=True, share_outputs=True)
        if "static" in kinds:
            fixed = openvino_request(Path(kinds["static"]).read_bytes(), threads)
            found["openvino int8 static"] = lambda: fixed.infer(arrays, share_inputs=True, share_outputs=True)
    return found


def _with_int8_weights(path: str) -> Any:
    """Return an OpenVINO model with int8 weights, each output with a scale: it then quantizes rows by itself."""
    import openvino
    from openvino import opset13 as op

    model = openvino.Core().read_model(path)
    for node in model.get_ordered_ops():
        weight = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if weight is None or weight.get_type_name() != "Constant":
            continue
        array = weight.data if node.get_attributes()["transpose_b"] else weight.data.T  # [out, in]
        scale = np.abs(array).max(1, keepdims=True).astype(np.float32) / 127
        integers = op.constant(np.rint(array / scale).astype(np.int8))
        wide = op.multiply(op.convert(integers, np.float32), op.constant(scale))
        new = op.matmul(node.input_value(0), wide, node.get_attributes()["transpose_a"], True)
        node.output(0).replace(new.output(0))
    model.validate_nodes_and_infer_types()
    return model


def rows(name: str, folder: Path, pick: str, threads: int, effort: measure.Effort) -> list[dict[str, Any]]:
    """Time one network at all batches."""
    original, pruned = networks(folder, name, pick)
    ours, dense = packed(name, pruned), packed(name, original)
    found = []
    for batch in BATCHES[name]:
        with measure.threads(threads):
            inputs = inputs_of(name, batch)
            calls = peers(name, original, batch, threads)
            calls |= {PRUNED: lambda inputs=inputs: ours(*inputs), DENSE: lambda inputs=inputs: dense(*inputs)}
            right = pruned(*inputs)
            error = float((ours(*inputs) - right).abs().max() / right.square().mean().sqrt())
            times = measure.interleaved(calls, effort)
        row: dict[str, Any] = {"network": name, "pruned": pick, "batch": batch, "threads": threads, "error": error}
        row["us"] = {each: times.median(each) * 1e6 for each in calls}
        row["times longer"] = {each: times.ratio(each, PRUNED) for each in calls if each != PRUNED}
        row["best"] = times.best_peer([each for each in calls if "int8" in each and not each.startswith(OURS)])
        row["packed"] = {name: str(d.format) for name, d in pc.layers.decisions(ours).items() if d.format is not None}
        found.append(row)
    return found


def table(found: list[dict[str, Any]]) -> Table:
    """Return the ratios of all contestants over ours, pruned."""
    others = list(dict.fromkeys(each for row in found for each in row["times longer"]))
    result = Table("network", "batch", "ours, us", *others, title="times longer than ours, pruned (median, 95 %)")
    for row in found:
        ratios = [row["times longer"].get(each) for each in others]
        texts = ["" if r is None else f"{r[0]:.2f} ({r[1]:.2f}-{r[2]:.2f})" for r in ratios]
        result.add_row(f"{row['network']} {row['pruned']}", str(row["batch"]), f"{row['us'][PRUNED]:.0f}", *texts)
    return result


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, required=True, help="folder that examples/patterns.py wrote")
    parser.add_argument("--only", choices=tuple(BATCHES), nargs="+", default=list(BATCHES))
    parser.add_argument("--pick", nargs="+", default=["16x4 80%"], help="pattern and sparsity, as the files are called")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few samples")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    effort = measure.QUICK if options.quick else measure.FULL
    found = [
        row
        for name in options.only
        for pick in options.pick
        for row in rows(name, options.networks, pick, options.threads, effort)
    ]
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        Console(width=220).print(table(found))


if __name__ == "__main__":
    main()
