"""The command: python -m model_server.compile models/ compiled/ [--part NAME|NAME.VERSION]
or, to check compiled models together: python -m model_server.compile --check compiled/
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from ..manifest import MANIFEST, VERSIONS, ManifestError, read_versions, takes_image, takes_numbers
from . import CompileError
from .build import Report, compile_model, label_versions
from .card import CardError, find_versions, load_card, load_versions

Result = TypeVar("Result")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 1 if a model was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m model_server.compile",
        description="Compile Keras models for the model server.",
    )
    parser.add_argument("models", type=Path, nargs="?", help="folder with one folder per model")
    parser.add_argument("compiled", type=Path, help="folder for the compiled models")
    parser.add_argument(
        "--part",
        metavar="NAME",
        default="",
        help="compile one part: a model without versions, a version (NAME.VERSION), or what the card of a model with "
        "versions says of them (NAME)",
    )
    parser.add_argument("--check", action="store_true", help="compile nothing; check compiled models together")
    options = parser.parse_args(arguments)
    if options.check:
        return _check(options.compiled)
    if options.models is None:
        parser.error("name the folder with the models and the folder for the compiled models")
    return _compile(options.models, options.compiled, options.part)


def _check(compiled: Path) -> int:
    try:
        models = read_versions(compiled)
    except ManifestError as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 1
    names = ", ".join(model.part(manifest.version) for model in models for manifest in model.manifests)
    answering = [model.default for model in models if model.default.predict]
    pictures = [one.name for one in answering if takes_image(one)]
    rows = [one.name for one in answering if takes_numbers(one)]
    pictures_go_to = ", ".join(pictures) or "no model"
    rows_go_to = rows[0] if len(rows) == 1 else f"no model: {', '.join(rows)} all take them" if rows else "no model"
    print(f"{compiled}: {names}.")
    print(f'POST /predict: pictures go to {pictures_go_to}; rows such as {{"X": "1 0|1 1"}} go to {rows_go_to}.')
    return 0


def _compile(models: Path, compiled: Path, part: str) -> int:
    folders = sorted(path for path in models.glob("*") if path.is_dir() and not path.name.startswith((".", "_")))
    if not folders:
        print(
            f"ERROR {models}: no model folder here. Make {models}/<name>/ with a model file in it.",
            file=sys.stderr,
        )
        return 1
    errors: list[str] = []
    versions = {folder: _tried(find_versions, errors, folder) for folder in folders}
    names, labelled = _parts(versions), {folder.name: folder for folder in folders if versions[folder]}
    if part:
        names = {name: where for name, where in names.items() if name == part}
        labelled = {name: folder for name, folder in labelled.items() if name == part}
        if not names and not labelled and not errors:
            print(f"ERROR {models}: there is no {part} here.", file=sys.stderr)
            return 1
    for folder, version in names.values():
        _tried(load_card, errors, folder, version)
    for folder in labelled.values():
        _tried(load_versions, errors, folder)
    reports = []
    for name, (folder, version) in names.items() if not errors else ():
        print(f"Compiling {name} …", file=sys.stderr, flush=True)
        reports.append(_tried(_isolated, errors, folder, compiled, version))
    said = [_tried(label_versions, errors, folder, compiled) for folder in labelled.values() if not errors]
    if not errors and not part:
        _remove_others(compiled, {folder.name: found or () for folder, found in versions.items()})
    if done := [report for report in reports if report]:
        print(_table(done))
    for line in filter(None, said):
        print(line)
    for text in dict.fromkeys(errors):  # versions share a card, and its mistakes
        print(f"ERROR {text}", file=sys.stderr)
    return 1 if errors else 0


def _tried(step: Callable[..., Result], errors: list[str], folder: Path, *more: Any) -> Result | None:
    """Call `step` and return what it returns. Add to `errors` what it says is wrong."""
    try:
        return step(folder, *more)
    except (CardError, CompileError) as error:
        errors += map(str, error.args)
    except Exception as error:  # unforeseen: the traceback is for us, the last line for the user
        traceback.print_exc()
        errors.append(f"{folder}: {type(error).__name__}: {error}. A fault of the compiler; please report it.")
    return None


def _parts(versions: dict[Path, tuple[str, ...] | None]) -> dict[str, tuple[Path, str]]:
    """Return what is compiled by itself, the models without versions and each version of the others, by its name."""
    parts = {}
    for folder, found in versions.items():
        if found == ():
            parts[folder.name] = (folder, "")
        parts |= {f"{folder.name}.{version}": (folder, version) for version in found or ()}
    return parts


def _remove_others(compiled: Path, wanted: dict[str, tuple[str, ...]]) -> None:
    """Remove compiled models and versions that are in models/ no more."""
    for path in {path.parent for name in (MANIFEST, VERSIONS) for path in compiled.glob(f"*/{name}")}:
        if path.name not in wanted:
            shutil.rmtree(path)
        elif versions := wanted[path.name]:
            for entry in path.iterdir():
                if entry.name not in (VERSIONS, *versions):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            os.utime(path, (0, 0))


def _isolated(folder: Path, compiled: Path, version: str) -> Report:
    """Compile in a new process. A converter that aborts then ends that process alone, and Keras numbers its names from
    the start, so a model's file does not depend on the models before it.
    """
    os.environ["PYTHONHASHSEED"] = "0"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(compile_model, folder, compiled, version).result()
        except BrokenProcessPool:
            raise CompileError(
                f"{folder / version}: the compiling process died. Most often it ran out of memory: give it more, name "
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
        lines += [f"{report.name}: not served by {refusal}" for refusal in report.refusals]
        if report.recorded:
            lines.append(f"{report.name}: the model's own answer was recorded for {report.recorded} of its examples")
        lines += [f"{report.name}: warning: {warning}" for warning in report.warnings]
    return "\n".join(line.rstrip() for line in lines)


def _bytes(size: int) -> str:
    return f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
