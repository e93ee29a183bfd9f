"""Kernels touch nothing outside their inputs and outputs: each array ends, or begins, at a page that faults."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("guarded_pages.py")


@pytest.mark.skipif(sys.platform == "win32", reason="no mprotect here")
@pytest.mark.parametrize("side", ["end", "begin"])
def test_no_access_outside_of_inputs_and_outputs(implementation, side):
    command = [sys.executable, "-X", "faulthandler", str(SCRIPT), implementation, side]
    # A fault kills the process, so the kernels run in one of their own.
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-500:]}\n{done.stderr[-3000:]}"
    assert done.stdout.splitlines()[-1] == "done"


def test_a_read_past_the_end_is_caught():
    code = "import guarded_pages as g, ctypes; a = g.guarded(g.np.ones(5, g.np.float32), 'end'); "
    code += "ctypes.string_at(a.ctypes.data, 21)"
    if sys.platform != "win32":
        assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode < 0
