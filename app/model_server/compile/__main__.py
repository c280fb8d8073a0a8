"""The command: python -m model_server.compile models/ compiled/
or, to check compiled models together: python -m model_server.compile --check compiled/ [--rows-model NAME]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from ..manifest import MANIFEST, ManifestError, read_manifests, rows_model
from . import CompileError
from .build import Report, compile_model
from .card import CardError, load_card


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 1 if a model was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m model_server.compile",
        description="Compile Keras models for the model server.",
    )
    parser.add_argument("models", type=Path, nargs="?", help="folder with one folder per model")
    parser.add_argument("compiled", type=Path, help="folder for the compiled models")
    parser.add_argument("--check", action="store_true", help="compile nothing; check compiled models together")
    parser.add_argument(
        "--rows-model", metavar="NAME", default="", help='with --check: the model that answers {"X": "1 0"}'
    )
    options = parser.parse_args(arguments)
    if options.check:
        return _check(options.compiled, options.rows_model)
    if options.models is None:
        parser.error("name the folder with the models and the folder for the compiled models")
    return _compile(options.models, options.compiled)


def _check(compiled: Path, wanted: str) -> int:
    try:
        manifests = read_manifests(compiled)
        rows = rows_model(manifests, wanted)
    except ManifestError as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 1
    names = ", ".join(manifest.name for manifest in manifests)
    print(f'{compiled}: {names}; rows such as {{"X": "1 0|1 1"}} go to {rows.name if rows else "no model"}.')
    return 0


def _compile(models: Path, compiled: Path) -> int:
    folders = sorted(path for path in models.glob("*") if path.is_dir() and not path.name.startswith((".", "_")))
    if not folders:
        print(
            f"ERROR {models}: no model folder here. Make {models}/<name>/ with a model file in it.",
            file=sys.stderr,
        )
        return 1
    errors = [error for folder in folders for error in _card_errors(folder)]
    reports = []
    for folder in folders if not errors else ():
        print(f"Compiling {folder.name} …", file=sys.stderr, flush=True)
        try:
            reports.append(_isolated(folder, compiled))
        except (CardError, CompileError) as error:
            errors += map(str, error.args)
        except Exception as error:  # unforeseen: the traceback is for us, the last line for the user
            traceback.print_exc()
            errors.append(f"{folder}: {type(error).__name__}: {error}. A fault of the compiler; please report it.")
    if not errors:
        for path in compiled.glob(f"*/{MANIFEST}"):
            if path.parent.name not in {folder.name for folder in folders}:
                shutil.rmtree(path.parent)
    if reports:
        print(_table(reports))
    for text in errors:
        print(f"ERROR {text}", file=sys.stderr)
    return 1 if errors else 0


def _card_errors(folder: Path) -> tuple[str, ...]:
    try:
        load_card(folder)
    except CardError as error:
        return error.args
    return ()


def _isolated(folder: Path, compiled: Path) -> Report:
    """Compile in a new process. A converter that aborts then ends that process alone, and Keras numbers its names from
    the start, so a model's file does not depend on the models before it.
    """
    os.environ["PYTHONHASHSEED"] = "0"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(compile_model, folder, compiled).result()
        except BrokenProcessPool:
            raise CompileError(
                f"{folder}: the compiling process died. Most often it ran out of memory: give it more, name "
                "the model's engine in its card (engine: litert), or make the model smaller."
            ) from None


def _table(reports: list[Report]) -> str:
    rows = [("model", "source", "engine", "speed", "size", "largest difference", "seconds")]
    rows += [
        (r.name, r.source_format, r.engine, r.speed, _bytes(r.size), f"{r.largest_difference:.1e}", f"{r.seconds:.1f}")
        for r in reports
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    align = [str.ljust] * 3 + [str.rjust] * 4
    lines = ["  ".join(map(lambda put, text, width: put(text, width), align, row, widths)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for report in reports:
        lines += [f"{report.name}: {engine} would do {speed}" for engine, speed in report.others.items()]
        lines += [f"{report.name}: not by {refusal}" for refusal in report.refusals]
    return "\n".join(line.rstrip() for line in lines)


def _bytes(size: int) -> str:
    return f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
