"""python -m model_server.compile models/ bundle/ [--model NAME]
python -m model_server.compile --check bundle/ [--rows-model NAME]
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

from ..bundle import MANIFEST, BundleError, read_bundle, rows_model
from ..card import CardError, load_card
from . import CompileError
from .build import Report, compile_model


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 1 where a model or the bundle was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m model_server.compile",
        description="Compile Keras models into a bundle for the model server.",
    )
    parser.add_argument("models", type=Path, nargs="?", help="folder with one folder a model")
    parser.add_argument("bundle", type=Path, help="folder to write the bundle to")
    parser.add_argument("--model", metavar="NAME", help="compile this model alone and leave the others as they are")
    parser.add_argument("--check", action="store_true", help="compile nothing: check a finished bundle as a whole")
    parser.add_argument(
        "--rows-model", metavar="NAME", default="", help='with --check: the model that answers {"X": "1 0"}'
    )
    options = parser.parse_args(arguments)
    if options.check:
        return _check(options.bundle, options.rows_model)
    if options.models is None:
        parser.error("name the folder with the models and the folder for the bundle")
    return _compile(options.models, options.bundle, options.model)


def _check(bundle: Path, wanted: str) -> int:
    try:
        manifests = read_bundle(bundle)
        rows = rows_model(manifests, wanted)
    except BundleError as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 1
    names = ", ".join(manifest.name for manifest in manifests)
    print(f'{bundle}: {names}; rows such as {{"X": "1 0|1 1"}} go to {rows.name if rows else "no model"}.')
    return 0


def _compile(models: Path, bundle: Path, only: str | None) -> int:
    folders = sorted(path for path in models.glob("*") if path.is_dir() and not path.name.startswith((".", "_")))
    names = [folder.name for folder in folders]
    if not folders:
        print(
            f"ERROR {models}: no model folder here. Make {models}/<name>/ with a model file in it.",
            file=sys.stderr,
        )
        return 1
    if only is not None and only not in names:
        print(f"ERROR {models}: there is no model {only}; the models: {', '.join(names)}.", file=sys.stderr)
        return 1
    folders = [folder for folder in folders if only in (None, folder.name)]
    errors = [error for folder in folders for error in _card_errors(folder)]
    reports = []
    for folder in folders if not errors else ():
        print(f"Compiling {folder.name} …", file=sys.stderr, flush=True)
        try:
            reports.append(_isolated(folder, bundle))
        except (CardError, CompileError) as error:
            errors += map(str, error.args)
        except Exception as error:  # nobody foresaw it: the trace is for us, the last line for the user
            traceback.print_exc()
            errors.append(f"{folder}: {type(error).__name__}: {error}. A fault of the compiler; please report it.")
    if only is None and not errors:
        for path in bundle.glob(f"*/{MANIFEST}"):
            if path.parent.name not in names:
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


def _isolated(folder: Path, bundle: Path) -> Report:
    """Compile in a fresh process: a converter that aborts takes only itself down, and names counted up by
    Keras start anew, so a model's file does not depend on the models before it.
    """
    os.environ["PYTHONHASHSEED"] = "0"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(compile_model, folder, bundle).result()
        except BrokenProcessPool:
            raise CompileError(
                f"{folder}: the compiling process died. Most often it ran out of memory: give it more, or "
                "make the model smaller."
            ) from None


def _table(reports: list[Report]) -> str:
    rows = [("model", "source", "engine", "size", "largest difference", "seconds")]
    rows += [
        (r.name, r.source_format, r.engine, _bytes(r.size), f"{r.max_difference:.1e}", f"{r.seconds:.1f}")
        for r in reports
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    align = [str.ljust] * 3 + [str.rjust] * 3
    lines = ["  ".join(map(lambda put, text, width: put(text, width), align, row, widths)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += [f"{report.name}: not by {refusal}" for report in reports for refusal in report.refused]
    return "\n".join(line.rstrip() for line in lines)


def _bytes(size: int) -> str:
    return f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
