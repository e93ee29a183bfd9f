"""The command line: ``pycompress demo | inspect | doctor | calibrate``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXIT_CODES = """exit codes:
  0  done; for the demo also: every verdict is non-inferior and every file loads to the same bits
  1  done, but a check failed (a verdict, a file's digest, a problem that doctor found)
  2  a mistake in the call, or a file that cannot be read
  130  interrupted
  141  the reader of the output has gone, as in `pycompress inspect FILE | head -1`"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        0 done, 1 a check failed, 2 a mistake in the call, 130 interrupted, 141 nobody reads the output.

    Examples
    --------
    >>> main(["inspect", "no-such-file"])
    2
    """
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
        code: int = options.run(options)
        return code
    except KeyboardInterrupt:
        print("pycompress: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        print(f"pycompress: {what}", file=sys.stderr)
        return 2
    except (ValueError, ImportError) as error:
        print(f"pycompress: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="pycompress",
        description="Make a PyTorch model smaller and measurably faster on a CPU, with proof that it still works.",
        epilog=EXIT_CODES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    parser.set_defaults(run=_version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train, compress and validate two small models on real digits",
        description="Train an MLP and a CNN on 1 797 handwritten digits, compress them, and compare original and "
        "compressed: accuracy on the held-out items of five folds, size, latency, membership inference. "
        "Takes about a minute.",
        epilog=EXIT_CODES,
        formatter_class=raw,
    )
    demo.add_argument("--json", action="store_true", help="print JSON")
    demo.add_argument("--out", type=Path, metavar="DIR", help="save the compressed models there")
    demo.add_argument("--seed", type=_seed, default=0, help="of everything random (default 0)")
    demo.set_defaults(run=_demo)
    inspect = commands.add_parser(
        "inspect", help="say what a saved model holds", epilog=EXIT_CODES, formatter_class=raw
    )
    inspect.add_argument("file", metavar="FILE")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)
    doctor = commands.add_parser(
        "doctor", help="say which kernels run here and why", epilog=EXIT_CODES, formatter_class=raw
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)
    calibrate = commands.add_parser(
        "calibrate",
        help="measure from which share of zeros on sparse int8 layers are faster here",
        description="Time int8 weights whose zeros are skipped against dense int8 ones, on one thread, and keep in the "
        "user's cache folder (PYCOMPRESS_CACHE) from which share of zeros on they are faster. pack tries them from "
        "there on. Takes about a minute.",
        epilog=EXIT_CODES,
        formatter_class=raw,
    )
    calibrate.add_argument("--json", action="store_true", help="print JSON")
    calibrate.set_defaults(run=_calibrate)
    return parser


def _seed(text: str) -> int:
    if not (text.isdecimal() and len(text) <= 10 and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to {2**32 - 1}, got {text!r:.40}")
    return int(text)


def _version(options: argparse.Namespace) -> int:
    from . import __version__

    if not options.version:
        _parser().print_help()
        return 2
    print(f"pycompress {__version__}")
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError("this command needs PyTorch: pip install 'pycompress-nn[torch]'") from None


def _demo(options: argparse.Namespace) -> int:
    _need_torch()
    from . import report
    from .demo import run

    result = run.run(options.out, seed=options.seed)
    found = result.to_dict()
    if options.json:
        _print_json(found)
    else:
        report.show(report.models_table(found["models"], f"held out in {run.FOLDS} folds"))
        where = "" if options.out is None else f" The compressed models are in {options.out}."
        report.show([f"It took {found['seconds']:.0f} s, on one thread, with seed {options.seed}.{where}"])
    good = all(m["verdict"]["decision"] == "non-inferior" and m["reload_equal"] for m in found["models"])
    return 0 if good else 1


def _inspect(options: argparse.Namespace) -> int:
    _need_torch()
    from . import report
    from .artifact import describe

    try:
        found = describe(options.file)
    except ValueError as error:
        raise ValueError(f"{options.file!r} is no file of pycompress: {error}") from error
    if options.json:
        _print_json(_plain(found))
    else:
        report.show(report.description_tables(options.file, found))
    return 0 if found.digest_ok else 1


def _plain(value: Any) -> Any:
    """Return dataclasses as dicts, and formats as text."""
    from dataclasses import fields, is_dataclass

    if is_dataclass(value) and not isinstance(value, type):
        if type(value).__module__.endswith(".formats"):
            return repr(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _doctor(options: argparse.Namespace) -> int:
    from . import report

    findings = report.diagnose()
    if options.json:
        _print_json(_plain(findings))
    else:
        report.show(report.findings_table(findings))
    return 1 if any(finding.fix for finding in findings) else 0


def _calibrate(options: argparse.Namespace) -> int:
    from . import breakeven, kernels, report

    kernels.set_num_threads(1)
    entries = breakeven.measure()
    path = breakeven.write(entries)
    if options.json:
        _print_json({"file": str(path), "level": breakeven.level(), "entries": _plain(entries)})
    else:
        report.show(report.break_even_table(breakeven.level(), entries))
        report.show([f"Written to {path}"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
