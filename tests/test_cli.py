"""The command line: quick, exact about its exit codes, without stack traces, and with nothing else on stdout."""

import copy
import dataclasses
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pycompress as pc
from pycompress import cli, kernels, report
from pycompress.demo import data, models, run


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("PYCOMPRESS_BACKEND", "PYCOMPRESS_ISA", "PYCOMPRESS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, timeout=120, **options)


def call(capsys, *arguments):
    """Run a command; return its exit code, what it prints, and what it says on stderr."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        code = error.code
    out, said = capsys.readouterr()
    assert "Traceback" not in said
    return code, out, said


@pytest.mark.parametrize("argument", ["--help", "--version", "demo --help", "inspect --help", "doctor --help"])
def test_help_imports_nothing_heavy(argument):
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'numpy', 'scipy', 'rich', 'numba', 'safetensors'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        f"from pycompress.cli import main\nsys.exit(main({argument.split()!r}))"
    )
    done = python("-c", code, text=True)
    assert done.returncode == 0 and done.stderr == "[]\n" and done.stdout


def test_help_tells_commands_and_exit_codes(capsys):
    code, out, said = call(capsys, "--help")
    assert code == 0 and not said
    for words in ("demo", "inspect", "doctor", "exit codes:", "130  interrupted"):
        assert words in out
    assert all(len(line) <= 120 for line in out.splitlines())


def test_the_version_and_a_call_without_a_command(capsys):
    assert call(capsys, "--version") == (0, f"pycompress {pc.__version__}\n", "")
    code, out, _ = call(capsys)
    assert code == 2 and out.startswith("usage: pycompress")


@pytest.mark.parametrize(
    "arguments", [["compress"], ["inspect"], ["demo", "--seed", "-1"], ["demo", "--seed", "x"], ["doctor", "--all"]]
)
def test_mistakes_in_the_call(capsys, arguments):
    code, out, said = call(capsys, *arguments)
    assert code == 2 and not out and said.startswith("usage: pycompress")


@pytest.mark.parametrize("seed", ["1.5", "4294967296", "9" * 5000, "", "１e3"])
def test_wrong_seeds_are_shown_shortly(capsys, seed):
    code, out, said = call(capsys, "demo", "--seed", seed)
    assert code == 2 and not out and "--seed: must be an integer from 0 to 4294967295, got" in said and len(said) < 400


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    pc.quantize_(model, pc.Int8())
    pc.save(pc.pack(model, torch.zeros(1, 16), force=True), tmp_path / "[red]model.safetensors")
    return tmp_path / "[red]model.safetensors"


def test_inspect(capsys, file):
    code, out, said = call(capsys, "inspect", file)
    assert code == 0 and not said and out.startswith(f"{file}\n")
    assert "the digest fits" in out and "0.weight" in out and "8 x 16" in out and "Int8()" in out
    code, out, said = call(capsys, "inspect", "--json", file)
    found = json.loads(out)
    assert code == 0 and not said and found["digest_ok"] and found["bytes"] == file.stat().st_size
    assert {tensor["name"]: tensor["shape"] for tensor in found["tensors"]}["2.weight"] == [2, 8]
    packed = found["layers"]["0"]["packed"]
    assert (packed["format"], packed["activation"]) == ("Int8()", "relu")


def test_inspect_of_a_file_that_was_changed(capsys, file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, out, said = call(capsys, "inspect", file)
    assert code == 1 and "DOES NOT FIT" in out and not said
    code, out, _ = call(capsys, "inspect", "--json", file)
    assert code == 1 and json.loads(out)["digest_ok"] is False


def test_inspect_of_what_is_no_artifact(capsys, tmp_path):
    (tmp_path / "text").write_text("not a model")
    (tmp_path / "empty").touch()
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "pickle")
    for name in ("text", "empty", "pickle", "."):
        code, out, said = call(capsys, "inspect", tmp_path / name)
        assert (
            code == 2 and not out and said.startswith(f"pycompress: {str(tmp_path / name)!r} is no file of pycompress")
        )
        assert said.count("\n") == 1
    assert call(capsys, "inspect", tmp_path / "none") == (
        2,
        "",
        f"pycompress: {tmp_path / 'none'}: No such file or directory\n",
    )
    assert call(capsys, "inspect", "")[0] == 2


def test_doctor(capsys, monkeypatch):
    findings = [report.Finding("pycompress", "0.1"), report.Finding("C++ kernels", "built")]
    monkeypatch.setattr(report, "diagnose", lambda: findings)
    code, out, said = call(capsys, "doctor")
    assert code == 0 and not said and "No problem found." in out and "to do" not in out
    findings.append(report.Finding("torch", "not installed", "pip install torch"))
    code, out, said = call(capsys, "doctor")
    assert code == 1 and not said and "to do: pip install torch" in out and "1 thing to do." in out
    code, out, _ = call(capsys, "doctor", "--json")
    assert code == 1 and json.loads(out)[-1] == dataclasses.asdict(findings[-1])


@pytest.mark.parametrize("name", ["PYCOMPRESS_BACKEND", "PYCOMPRESS_ISA", "PYCOMPRESS_NUM_THREADS"])
def test_doctor_with_wrong_variables(capsys, monkeypatch, name):
    if name == "PYCOMPRESS_ISA" and "native" not in kernels.available_backends():
        pytest.skip("there are no levels without the native kernels")
    monkeypatch.setenv(name, "nonsense")
    code, out, said = call(capsys, "doctor")
    assert code == 1 and not said and name in out and "correct or unset that variable" in out
    code, out, said = call(capsys, "doctor", "--json")
    assert code == 1 and not said and name in next(f for f in json.loads(out) if f["fix"])["found"]


def test_wrong_variables_end_a_command_without_a_stack_trace(capsys, monkeypatch, tiny):
    monkeypatch.setenv("PYCOMPRESS_BACKEND", "nonsense")
    code, out, said = call(capsys, "demo")
    assert code == 2 and not out and said.startswith("pycompress: PYCOMPRESS_BACKEND must be one of")


def test_doctor_needs_no_torch(monkeypatch):
    code = "import sys; from pycompress.cli import main; main(['doctor']); assert 'torch' not in sys.modules"
    done = python("-c", code, text=True)
    assert done.returncode == 0 and "C++ kernels" in done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [["demo"], ["inspect", "file"]])
def test_without_torch_the_message_says_what_to_install(capsys, monkeypatch, arguments):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, said = call(capsys, *arguments)
    assert (code, out) == (2, "") and said.endswith("needs PyTorch: pip install 'pycompress-nn[torch]'\n")


TINY = run.Recipe("MLP [red]tiny", models.mlp, {"epochs": 4}, {"sparsity": 0.5, "quantize": pc.Int8(), "epochs": 1})


@pytest.fixture
def tiny(monkeypatch):
    """A demo of few items, epochs and folds."""
    images, labels = data.digits()
    monkeypatch.setattr(run, "RECIPES", (TINY,))
    monkeypatch.setattr(run, "FOLDS", 2)
    monkeypatch.setattr(run, "digits", lambda: (images[:300], labels[:300]))
    monkeypatch.setattr(run, "external_split", lambda: ((images[:300], labels[:300]), (images[-100:], labels[-100:])))


@pytest.fixture
def answer(monkeypatch):
    """What the demo finds, without running it."""
    side = {"accuracy": 0.97, "accuracy_interval": [0.96, 0.98], "membership_auc": 0.5}
    side |= {"membership_auc_interval": [0.4, 0.6], "bytes": 1000, "latency_ms": {"1": 0.05, "32": 0.2}}
    found = {"name": "MLP", "original": side, "compressed": side, "reload_equal": True, "threads": 1}
    found["verdict"] = {"difference": 0.0, "interval": [-0.01, 0.01], "margin": 0.015, "decision": "non-inferior"}
    found["speedup"] = {"1": [2.0, 1.9, 2.1], "32": [2.0, 1.9, 2.1]}

    both = [copy.deepcopy(found), copy.deepcopy(found)]
    result = SimpleNamespace(to_dict=lambda: {"seconds": 1.0, "models": both})
    monkeypatch.setattr(run, "run", lambda out, seed: result)
    return both


def test_the_demo_prints_json_and_saves(capsys, monkeypatch, tiny, tmp_path):
    code, out, said = call(capsys, "demo", "--json", "--seed", "3", "--out", tmp_path / "new" / "folder")
    found = json.loads(out)
    assert not said and set(found) >= {"seconds", "models"} and found["seconds"] > 0
    [model] = found["models"]
    assert set(model) >= {"name", "original", "compressed", "verdict", "reload_equal"}
    for side in ("original", "compressed"):
        assert set(model[side]) >= {"accuracy", "bytes", "latency_ms", "membership_auc"}
        assert set(model[side]["latency_ms"]) == {"1", "32"}
        assert all(isinstance(value, float) for value in model[side]["latency_ms"].values())
        assert 0 <= model[side]["accuracy"] <= 1 and 0 <= model[side]["membership_auc"] <= 1
    assert set(model["verdict"]) >= {"difference", "interval", "margin", "decision"}
    assert len(model["verdict"]["interval"]) == 2 and model["verdict"]["margin"] == 0.015
    assert model["reload_equal"] is True and model["name"] == TINY.name
    assert code == (0 if model["verdict"]["decision"] == "non-inferior" else 1)
    [path] = (tmp_path / "new" / "folder").iterdir()
    assert path.name == "mlp.safetensors" and path.stat().st_size == model["compressed"]["bytes"]
    assert call(capsys, "inspect", path)[0] == 0


def test_the_demo_prints_tables(capsys, answer, tmp_path):
    code, out, said = call(capsys, "demo", "--out", tmp_path)
    assert code == 0 and not said and out.count("held out in 5 folds") == 2
    assert out.count("non-inferior: at worst 1.00 points") == 2
    assert out.endswith(f"with seed 0. The compressed models are in {tmp_path}.\n")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"reload_equal": False}, 1),
        ({"verdict": {"decision": "undecided"}}, 1),
        ({"verdict": {"decision": "inferior"}}, 1),
    ],
)
def test_the_demo_fails_when_a_check_fails(capsys, answer, change, code):
    for key, value in change.items():
        answer[1][key] = answer[1][key] | value if isinstance(value, dict) else value
    assert call(capsys, "demo")[0] == code == call(capsys, "demo", "--json")[0]


def test_a_folder_that_cannot_be_written_is_found_before_the_work(capsys, monkeypatch, tmp_path):
    def work(*_):
        raise AssertionError("the work began")

    monkeypatch.setattr(run, "_run_one", work)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        code, out, said = call(capsys, "demo", "--out", path)
        assert code == 2 and not out and said.startswith(f"pycompress: {path}: ")

    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(run.tempfile, "TemporaryFile", refuse)
    assert call(capsys, "demo", "--out", tmp_path) == (2, "", f"pycompress: {tmp_path}: Permission denied\n")


def test_ctrl_c(capsys, monkeypatch):
    monkeypatch.setattr(run, "run", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert call(capsys, "demo") == (130, "", "pycompress: interrupted\n")


def test_ctrl_c_in_the_middle_of_training(capsys, monkeypatch, tiny):
    def batches():
        signal.raise_signal(signal.SIGINT)

    recipe = dataclasses.replace(TINY, train={"epochs": 1, "loss": lambda outputs, targets: batches()})
    monkeypatch.setattr(run, "RECIPES", (recipe,))
    threads = torch.get_num_threads()
    assert call(capsys, "demo") == (130, "", "pycompress: interrupted\n")
    assert torch.get_num_threads() == threads


def test_a_reader_that_leaves(file):
    for options in ([], ["--json"]):
        code = (
            "import os, sys; from pycompress.cli import main\n"
            "read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
            f"code = main(['inspect', {str(file)!r}, *{options}]); sys.stdout.flush(); sys.exit(code)"
        )
        done = python("-c", code, text=True)
        assert done.returncode not in (0, 2) and not done.stderr, done.stderr
