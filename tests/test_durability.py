"""A saved file is the old one or the new one, whole: after a kill, a full disk, with two writers, under a mapping."""

import errno
import io
import json
import mmap
import os
import stat
import subprocess
import sys

import pytest
import torch
from torch import nn

from pycompress import artifact
from pycompress.artifact import durable

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, kill and umask")


def model(value):
    """A model that is filled with one value: a file made of two would show."""
    layer = nn.Linear(300, 300, bias=False)
    layer.weight.data.fill_(value)
    return layer


def value_in(path):
    weight = artifact.load(path, into=model(-1.0)).weight
    assert bool((weight == weight[0, 0]).all())
    return weight[0, 0].item()


def in_process(script, *arguments):
    """Run a script, with the names of this file, in a process of its own; return what it prints as JSON."""
    head = (
        "import json, os, random, signal, sys, time, torch\ntorch.set_num_threads(1)\nfrom test_durability import *\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


KILLS = """
path, kills = sys.argv[1], int(sys.argv[2])
generator = random.Random(0)
models = [model(1.0), model(2.0)]
start = time.perf_counter()
for each in models:
    artifact.save(each, path)
pair = time.perf_counter() - start
values = []
for _ in range(kills):
    models.reverse()
    child = os.fork()
    if child == 0:
        while True:
            for each in models:
                artifact.save(each, path)
    time.sleep(0.002 + generator.uniform(0, 2 * pair))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    values.append(value_in(path))
print(json.dumps(values))
"""


@posix
@pytest.mark.parametrize("kills", [50, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path, kills):
    path = tmp_path / "model.safetensors"
    values = in_process(KILLS, path, kills)
    assert len(values) == kills and set(values) == {1.0, 2.0}
    unfinished = [name for name in os.listdir(tmp_path) if name != path.name]
    assert all(name.startswith(".model.safetensors.") and name.endswith(".tmp") for name in unfinished)
    assert len(unfinished) >= kills // 10, "most kills come in the middle of a save"


WRITERS = """
path = sys.argv[1]
models = [model(float(value)) for value in (1, 2, 3, 4)]
children = []
for mine in models:
    child = os.fork()
    if child == 0:
        for _ in range(10):
            artifact.save(mine, path)
            value_in(path)
        os._exit(0)
    children.append(child)
print(json.dumps([os.waitpid(child, 0)[1] for child in children]))
"""


@posix
def test_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "model.safetensors"
    assert in_process(WRITERS, path) == [0, 0, 0, 0]
    assert value_in(path) in (1.0, 2.0, 3.0, 4.0)
    assert os.listdir(tmp_path) == [path.name]


LIMIT = """
import resource
path = sys.argv[1]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    artifact.save(model(2.0), path)
except OSError as error:
    print(json.dumps([error.errno, os.listdir(os.path.dirname(path)), value_in(path)]))
"""


@posix
def test_a_write_that_the_system_cuts_short_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.safetensors"
    artifact.save(model(1.0), path)
    assert in_process(LIMIT, path) == [errno.EFBIG, [path.name], 1.0]


class Failing(io.FileIO):
    """A file that takes half of the bytes, then fails."""

    code = 0

    def write(self, data):
        super().write(data[: len(data) // 2])
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_full_or_broken_disk_leaves_the_old_file(tmp_path, monkeypatch, code, where, exists):
    path = tmp_path / "model.safetensors"
    if exists:
        artifact.save(model(1.0), path)

    def fail(*_arguments):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(Failing, "code", code)
            patch.setattr(durable, "open", Failing, raising=False)
        else:
            patch.setattr(durable.os, where, fail)
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            artifact.save(model(2.0), path)
    assert caught.value.errno == code
    assert os.listdir(tmp_path) == ([path.name] if exists else [])
    assert not exists or value_in(path) == 1.0


def test_an_interrupted_save_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(_descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(durable.os, "fsync", interrupt)
        artifact.save(model(1.0), tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == []


def test_the_file_is_on_the_disk_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(durable.os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    artifact.save(model(1.0), tmp_path / "model.safetensors")
    assert calls == (["fsync", "replace", "fsync"] if os.name == "posix" else ["fsync", "replace"])


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_follows_the_umask(tmp_path, umask):
    path = tmp_path / "model.safetensors"
    before = os.umask(umask)
    try:
        for _ in range(2):  # a new file, and one over it
            artifact.save(model(1.0), path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)


@posix
def test_saving_over_a_file_that_is_mapped_leaves_the_mapping_as_it_was(tmp_path):
    path = tmp_path / "model.safetensors"
    artifact.save(model(1.0), path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = mapped[:]
        artifact.save(nn.Linear(2, 2), path)  # a shorter file: pages that were cut off would be a bus error
        assert mapped[:] == before
    again = artifact.load(path, into=nn.Linear(2, 2))
    artifact.save(model(2.0), path)
    assert torch.isfinite(again.weight).all() and value_in(path) == 2.0


@posix
def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "store").mkdir()
    link = tmp_path / "model.safetensors"
    link.symlink_to(tmp_path / "store" / "real")
    artifact.save(model(1.0), link)
    artifact.save(model(2.0), link)
    assert link.is_symlink() and value_in(tmp_path / "store" / "real") == 2.0
    assert os.listdir(tmp_path / "store") == ["real"]


def test_a_long_name_and_a_folder_that_is_missing(tmp_path):
    path = tmp_path / ("ж" * 120)
    artifact.save(model(1.0), path)
    assert value_in(path) == 1.0
    with pytest.raises(FileNotFoundError):
        artifact.save(model(1.0), tmp_path / "none" / "model.safetensors")
