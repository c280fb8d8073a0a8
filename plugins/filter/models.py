"""Filters of role model_image: what is wrong with a folder of models, what images are named, what the builder keeps."""

from __future__ import annotations

import hashlib
import json
import os.path
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# A model's files in a numbered folder are one version of it; what is beside these folders is shared.
VERSION_FILE = re.compile(r"([^/]+)/(0|[1-9][0-9]*)/.+")
CARD = "model.yml"
# What the role compiles by itself is named as its model, cats-0a1b, or as a version, cats.2-0a1b.
AFTER_MODEL = re.compile(r"(\.[0-9]+)?-[0-9a-f]+$")

# Which files of app/ go into what.
TOOLCHAIN = re.compile(r"Dockerfile|pip-install|requirements/toolchain")
COMPILER = re.compile(r"model_server/(compile|manifest|engines|inputs|answers)")
ANY = re.compile("")
IMAGE = re.compile(r"Dockerfile|pip-install|requirements/(?!test)|model_server/")

# The images that pruning is about; base images, hosts and tests have names of the same kind.
PRUNED = re.compile(r"slipway/(model-server|runtime|libraries|toolchain):")
MODEL_SERVER = "slipway/model-server:"
# A table of the compiler's with one model in it: its head, a rule, the model's row.
TABLE = re.compile(r"^(\S.*)\n-[ -]*\n(.*)\n?", re.MULTILINE)


def file_sums(found: Iterable[Mapping[str, Any]], folder: str, only: str = "") -> dict[str, str]:
    """Return the checksum of each file that ansible.builtin.find `found`, by its path relative to `folder`.

    With `only`, of the files in that folder below it alone.
    """
    sums = {os.path.relpath(file["path"], folder): str(file["checksum"]) for file in found}
    return {path: sums[path] for path in sorted(sums) if not only or path.startswith(f"{only}/")}


def model_names(models: Iterable[str]) -> list[str]:
    """Return the models that `models`, paths relative to the folder of models, make up."""
    folders = {path.partition("/")[0] for path in models if "/" in path}
    return sorted(folder for folder in folders if MODEL_NAME.fullmatch(folder))


def model_faults(models: Iterable[str], folders: Iterable[str], where: str) -> list[str]:
    """Return a fact and its remedy for each file or folder that no model can be built from.

    `models` are paths relative to `where`; `folders` are the names of the folders directly in it.
    """
    faults = []
    full = set()
    for path in sorted(models):
        folder, _, file = path.partition("/")
        if not file:
            faults.append(f"{where}/{path} is beside the model folders. Move it into a folder of its own.")
            continue
        full.add(folder)
        if file == "model.yaml" or (VERSION_FILE.fullmatch(path) and file.partition("/")[2] == "model.yaml"):
            faults.append(f"{where}/{path} is ignored. Rename it to {CARD}.")
    for folder in sorted({*folders, *full}):
        if folder not in full:
            faults.append(f"{where}/{folder} is empty. Add a model, or remove the folder.")
        elif not MODEL_NAME.fullmatch(folder):
            faults.append(
                f"{where}/{folder} has a name that cannot be part of an address."
                " Rename it, with lower-case letters, digits, _ and - only."
            )
    if not faults and not full:
        faults.append(f"{where} has no models. Put each model into a folder of its own there.")
    return faults


def _sha256(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _lines(sums: Mapping[str, str], pattern: re.Pattern[str] = ANY) -> list[str]:
    return sorted(f"{path} {checksum}" for path, checksum in sums.items() if pattern.match(path))


def versioned_cards(models: Iterable[str], folder: str) -> dict[str, str]:
    """Return the cards in `folder` that several versions of a model share, without what they say of the versions.

    So a version is not compiled anew when labels move. `models` are paths relative to the folder.
    """
    cards = {}
    for name in sorted({match[1] for path in models if (match := VERSION_FILE.fullmatch(path))}):
        path = Path(folder, name, CARD)
        if path.exists():
            cards[name] = _without_versions(path.read_text(encoding="utf-8", errors="replace"))
    return cards


def _without_versions(card: str) -> str:
    try:
        root = yaml.compose(card, yaml.BaseLoader)
    except yaml.YAMLError:  # for the compiler to report
        return card
    if not isinstance(root, yaml.MappingNode):
        return card
    root.value = [(key, value) for key, value in root.value if key.value != "versions"]
    return yaml.serialize(root, Dumper=yaml.BaseDumper, allow_unicode=True)


def content_hashes(
    app: Mapping[str, str],
    models: Mapping[str, str],
    base: str,
    architecture: str,
    compile_task: str,
    cards: Mapping[str, str],
) -> dict[str, Any]:
    """Return the hash of all that goes into the toolchain, into each compiled model and into the image.

    `app` and `models` are checksums by path, `base` is the base image's id, `compile_task` the text of the task that
    runs the compiler, and `cards` are what `versioned_cards` returns.
    """
    toolchain = _sha256([base, *_lines(app, TOOLCHAIN)])[:12]
    compiler = _sha256([toolchain, compile_task, *_lines(app, COMPILER)])
    names = model_names(models)
    versions = {
        part: _sha256([compiler, *lines])[:12]
        for name in names
        for part, lines in _parts(name, models, cards.get(name, "")).items()
    }
    compiled = [f"{part}-{version}" for part, version in versions.items()]
    image = _sha256([base, architecture, *_lines(app, IMAGE), *compiled])[:12]
    return {"toolchain": toolchain, "models": names, "versions": versions, "compiled": compiled, "image": image}


def _parts(name: str, models: Mapping[str, str], card: str) -> dict[str, list[str]]:
    """Return what goes into each part of a model that is compiled by itself: the model if it has no versions, else each
    version, and under the model's name what its card says of them.
    """
    files = {path: checksum for path, checksum in models.items() if path.startswith(f"{name}/")}
    versions: dict[str, dict[str, str]] = {}
    shared = {}
    for path, checksum in files.items():
        match = VERSION_FILE.fullmatch(path)
        (versions.setdefault(match[2], {}) if match else shared)[path] = checksum
    if not versions:
        return {name: _lines(files)}
    model_card = shared.pop(f"{name}/{CARD}", "")
    numbers = sorted(versions, key=int)
    parts = {name: [model_card, *numbers]}
    for number in numbers:
        own = f"{name}/{number}/{CARD}" in files
        parts[f"{name}.{number}"] = [*_lines(shared | versions[number]), "" if own else card]
    return parts


def whole_models(compiled: Iterable[str], reports: Iterable[str]) -> list[str]:
    """Return the parts in `compiled` of those models of which every part has a report: nothing of them is missing."""
    parts = list(compiled)
    broken = {AFTER_MODEL.sub("", part) for part in set(parts) - set(reports)}
    return [part for part in parts if AFTER_MODEL.sub("", part) not in broken]


def runtime_hash(app: Mapping[str, str], base: str, engines: str) -> str:
    """Return the hash of all that goes into an image without models."""
    return _sha256([base, engines, *_lines(app, IMAGE)])[:12]


def compile_faults(results: Iterable[Mapping[str, Any]], where: str) -> list[str]:
    """Return what the compiler says of the models that it refused, with paths below `where` for those in its container.

    `results` are those of the task that ran it: `model_image_compiling`, `rc` and `stderr` of each model.
    """
    faults = []
    known: set[str] = set()
    for result in results:
        if result.get("rc") == 0:
            continue
        said = str(result.get("stderr") or result.get("msg", "")).strip()
        errors = re.search(r"^ERROR .*", said, re.MULTILINE | re.DOTALL)
        if errors:
            text = re.sub(r"^ERROR ", "", errors.group(), flags=re.MULTILINE)
            # Each version of a model reports the mistakes of the card that they share.
            lines = [line for line in text.splitlines() if line not in known]
            known |= {*lines}
            faults += [re.sub(r"(?<!\S)/models/", lambda _: f"{where}/", "\n".join(lines))] if lines else []
        else:
            name = result["model_image_compiling"].rpartition("-")[0].replace(".", "/")
            faults.append(f"{where}/{name} was not compiled (exit code {result.get('rc')}): {said}")
    return faults


def compiler_table(reports: Iterable[str]) -> str:
    """Return the compiler's tables of one model each as one table, and below it what else the compiler said."""
    rows: list[list[str]] = []
    notes: list[str] = []
    for report in reports:
        for head, row in TABLE.findall(report):
            rows += [re.split(r"\s{2,}", line.strip()) for line in ([] if rows else [head]) + [row]]
        notes += TABLE.sub("", report).splitlines()
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    align = [str.ljust] * 3 + [str.rjust] * len(widths)
    lines = ["  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=False)) for row in rows]
    return "\n".join([line.rstrip() for line in lines] + notes)


def manifest_engines(manifests: str) -> list[str]:
    """Return the engines that models need, from their manifests one after the other."""
    engines = set()
    decoder = json.JSONDecoder()
    while manifests := manifests.lstrip():
        manifest, end = decoder.raw_decode(manifests)
        engines.add(str(manifest["engine"]))
        manifests = manifests[end:]
    return sorted(engines)


def prune_plan(images: Iterable[Mapping[str, Any]], wanted: str, keep: int, building: bool) -> dict[str, list[str]]:
    """Return which images stay for their own sake (`kept`), what they were built of (`needed`), and which images go.

    `images` are those of the builder: all `names` of each, when it was last `asked` for, and what it `needs`. The
    `wanted` image stays unless another run has removed it, and with it those that were asked for last, `keep` in all.
    While another run is `building`, nothing goes that it may be about to use.
    """
    there = {name: image for image in images for name in image["names"] or [] if PRUNED.match(name)}
    models = [name for name in there if name.startswith(MODEL_SERVER)]
    models.sort(key=lambda name: (name == wanted, there[name]["asked"]), reverse=True)
    kept = models[:keep]
    needed = {need for name in kept for need in there[name]["needs"].split()}
    surplus = sorted(name for name in there if name not in kept and name not in needed)
    return {
        "kept": kept,
        "needed": sorted(needed),
        "surplus": [name for name in surplus if name.startswith(MODEL_SERVER)] if building else surplus,
    }


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "compile_faults": compile_faults,
            "compiler_table": compiler_table,
            "content_hashes": content_hashes,
            "file_sums": file_sums,
            "manifest_engines": manifest_engines,
            "model_faults": model_faults,
            "prune_plan": prune_plan,
            "runtime_hash": runtime_hash,
            "versioned_cards": versioned_cards,
            "whole_models": whole_models,
        }
