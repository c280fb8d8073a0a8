"""A compiled model and its manifest: what the compiler writes and the server reads.

    compiled/<name>/manifest.json
    compiled/<name>/model.tflite | model.onnx | saved_model/
    compiled/<name>/examples/…

Of a model with several versions, each version has such a folder, beside what the card says of them:

    compiled/<name>/versions.json
    compiled/<name>/<version>/manifest.json, …

Standard library only: the runtime image has no YAML parser and, for most models, no TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
VERSIONS = "versions.json"
# The labels with a meaning: the version that answers requests which name none, and the one that gets a share of them.
STABLE = "stable"
CANARY = "canary"


class ManifestError(ValueError):
    """The compiled models cannot be served; the message names the file or folder and the remedy."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model.

    `shape` has -1 for each free size; the first size is the batch, always free. `dtype` is NumPy's name, or "string".
    `engine_name` is what the engine calls the tensor; users only ever see `name`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    engine_name: str
    kind: str


@dataclass(frozen=True)
class InputSpec(TensorSpec):
    """An input. `kind` is "tensor", "image" (a pixel, 0 … 255, becomes pixel * scale + offset) or "columns".

    `columns` names the numbers of a row, in their order. `color` is "grayscale" or "rgb", for an image only.
    `row_shape` is the shape of a row that the model took when it was compiled: of free sizes, one that is large enough.
    """

    color: str = ""
    scale: float = 1.0
    offset: float = 0.0
    invert: bool = False
    columns: tuple[str, ...] = ()
    row_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class OutputSpec(TensorSpec):
    """An output. `kind` is "numbers", "binary" (one score, two labels), "classes" (one score per label) or "image" (a
    number is pixel * scale + offset, the pixel within 0 … 255).

    The scores are the last size of the shape; sizes between the batch and it are steps, each with its own label.
    """

    labels: tuple[str, ...] = ()
    threshold: float = 0.5
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Example:
    """A question with its right answer.

    `input` is a row: a picture's path below the compiled model's folder, a list, a text, or a dict (column → value, or
    input name → value or path). `expect` maps an output's name to a label, a number or a nested list, or to
    the model's own answer as `answers.record` keeps it. `tolerance` is the largest difference of a number that still
    counts as right; of a recorded answer, as a share of its largest number.
    """

    name: str
    input: Any
    expect: dict[str, Any]
    tolerance: float = 0.01


@dataclass(frozen=True)
class Manifest:
    """One compiled model. `file` is relative to its folder; `engine` is "litert", "onnx" or "tensorflow".

    `signature` is the signature's name in the engine's file; `source_format` is "keras", "h5", "json+h5" or
    "saved_model". With `predict` the model also answers POST /predict, which names no model.
    """

    name: str
    version: str
    title: str
    description: str
    engine: str
    file: str
    source_format: str
    signature: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    examples: tuple[Example, ...]
    predict: bool = False

    @property
    def pictures(self) -> frozenset[str]:
        """The names of the inputs that are pictures."""
        return frozenset(spec.name for spec in self.inputs if spec.kind == "image")


@dataclass(frozen=True)
class Versions:
    """A compiled model: the manifest of each version, the lowest first, and which version requests that name none get.

    `labels` maps labels to versions and always has "stable", the default. `canary_share`, 0 … 1, of the requests that
    name no version goes to the version with the label "canary". Without `numbered`, the one version has no folder of
    its own.
    """

    folder: Path
    numbered: bool
    manifests: tuple[Manifest, ...]
    labels: dict[str, str]
    canary_share: float = 0.0

    @property
    def name(self) -> str:
        return self.manifests[0].name

    @property
    def default(self) -> Manifest:
        return next(manifest for manifest in self.manifests if manifest.version == self.labels[STABLE])

    def folder_of(self, version: str) -> Path:
        return self.folder / version if self.numbered else self.folder

    def part(self, version: str) -> str:
        """Return what a version is called where models are listed: "cats", or "cats.2" of several versions."""
        return f"{self.name}.{version}" if self.numbered else self.name


def example_files(row: Any, pictures: Collection[str]) -> list[str]:
    """Return the files that an example's input names: the texts of the inputs `pictures`."""
    files: list[str] = []
    replace_files(row, pictures, files.append)
    return files


def replace_files(row: Any, pictures: Collection[str], replace: Callable[[str], Any]) -> Any:
    """Return an example's input with `replace(name)` for each file's name."""

    def replaced(value: Any) -> Any:
        return replace(value) if isinstance(value, str) else value

    if isinstance(row, dict):
        return {name: replaced(value) if name in pictures else value for name, value in row.items()}
    return replaced(row) if pictures else row


def read_manifest(folder: Path) -> Manifest:
    """Read `folder`/manifest.json. Raises ManifestError if it is missing, unreadable or of another version."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        for key, cls in (("inputs", InputSpec), ("outputs", OutputSpec), ("examples", Example)):
            data[key] = tuple(_record(cls, item) for item in data[key])
        return Manifest(**data)
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}. Compile the model again.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: not a manifest of this version ({error}). Compile the model again.") from None


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `folder`/manifest.json; equal manifests give equal bytes."""
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def write_versions(labels: dict[str, str], canary_share: float, folder: Path) -> None:
    """Write `folder`/versions.json, which makes the numbered folders beside it the versions of one model."""
    text = json.dumps({"labels": labels, "canary_share": canary_share}, indent=2)
    (folder / VERSIONS).write_text(text + "\n", encoding="utf-8")


def read_versions(folder: Path) -> list[Versions]:
    """Read every compiled model in `folder`, ordered by name. Raises ManifestError, also if there is none."""
    found = sorted({path.parent for name in (MANIFEST, VERSIONS) for path in folder.glob(f"*/{name}")})
    if not found:
        raise ManifestError(f"{folder}: no compiled model here. Run python -m model_server.compile models/ {folder}")
    return [_read_model(path) for path in found]


def _read_model(folder: Path) -> Versions:
    path = folder / VERSIONS
    if not path.exists():
        manifest = read_manifest(folder)
        return Versions(folder, False, (manifest,), {STABLE: manifest.version})
    manifests = [read_manifest(one.parent) for one in folder.glob(f"*/{MANIFEST}") if one.parent.name.isdecimal()]
    manifests.sort(key=lambda manifest: int(manifest.version))
    if not manifests:
        raise ManifestError(f"{folder}: no version of the model is here. Compile the model again.")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        labels = {STABLE: manifests[-1].version} | about["labels"]
        model = Versions(folder, True, tuple(manifests), labels, about["canary_share"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: cannot be read ({error}). Compile the model again.") from None
    by_version = {manifest.version: manifest for manifest in manifests}
    for label, version in labels.items():
        if version not in by_version:
            raise ManifestError(f"{path}: {label} is version {version}, which is not here. Compile the model again.")
    if model.canary_share and _asked(by_version[labels[CANARY]]) != _asked(model.default):
        raise ManifestError(
            f"{model.name}: the canary, version {labels[CANARY]}, takes or answers something else than version "
            f"{labels[STABLE]}: clients that name no version would get errors or wrong answers by chance. Give both "
            "the same inputs (names, kinds, types, shapes, scale) and outputs (names, kinds, types, order), or leave "
            "canary_share out of the card."
        )
    return model


def _asked(manifest: Manifest) -> Any:
    """Return what a client has to know of a model to ask it and to read its answer."""
    inputs = {
        spec.name: (spec.kind, spec.dtype, spec.shape, spec.columns, spec.scale, spec.offset)
        for spec in manifest.inputs
    }
    return inputs, [(spec.name, spec.kind, spec.dtype) for spec in manifest.outputs]


def takes_image(manifest: Manifest) -> bool:
    """Return whether the model's only input is a picture, so that an upload is a whole request."""
    return len(manifest.inputs) == 1 and manifest.inputs[0].kind == "image"


def takes_numbers(manifest: Manifest) -> bool:
    """Return whether the model's only input is one row of numbers, so that `{"X": "1 0|1 1"}` is a whole request."""
    spec = manifest.inputs[0]
    return len(manifest.inputs) == 1 and len(spec.shape) == 2 and spec.dtype != "string"


def _record(cls: Callable[..., Any], data: dict[str, Any]) -> Any:
    tuples = {"shape", "columns", "row_shape", "labels"}
    return cls(**{key: tuple(value) if key in tuples else value for key, value in data.items()})
