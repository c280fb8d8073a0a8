"""The bundle: what the compiler writes and the server reads.

    bundle/<name>/manifest.json
    bundle/<name>/model.tflite | model.onnx | saved_model/
    bundle/<name>/examples/…

Standard library only: the runtime image carries no YAML parser and no TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


class BundleError(ValueError):
    """The bundle folder cannot be served; the message names the file and the remedy."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model.

    `shape` has -1 where the size is free (the batch is always first); `dtype` is NumPy's name, or "string".
    `engine_name` is what the engine calls the tensor; users only ever see `name`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    engine_name: str
    kind: str


@dataclass(frozen=True)
class InputSpec(TensorSpec):
    """`kind` is "tensor", "image" (0 … 255 * scale + offset) or "columns" (a name for each number)."""

    color: str = ""
    scale: float = 1.0
    offset: float = 0.0
    invert: bool = False
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutputSpec(TensorSpec):
    """`kind` is "numbers", "binary" (one probability, two labels) or "classes" (one score a label)."""

    labels: tuple[str, ...] = ()
    threshold: float = 0.5


@dataclass(frozen=True)
class Example:
    """A sample with its expected answer.

    `input` is a path below the bundle's model folder, a list of numbers, or a dict (column → number, or
    input name → nested list or path). `expect` maps an output's name to a label, a number or a nested list.
    """

    name: str
    input: Any
    expect: dict[str, Any]
    tolerance: float = 0.01


@dataclass(frozen=True)
class Manifest:
    """One compiled model. `file` is relative to its folder; `engine` is "litert", "onnx" or "tensorflow"."""

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
    max_difference: float
    source_hash: str


def _record(cls: Callable[..., Any], data: dict[str, Any]) -> Any:
    tuples = {"shape", "columns", "labels"}
    return cls(**{key: tuple(value) if key in tuples else value for key, value in data.items()})


def read_manifest(folder: Path) -> Manifest:
    """Read `folder`/manifest.json.

    Raises BundleError if it is missing, unreadable or from another version.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        for key, cls in (("inputs", InputSpec), ("outputs", OutputSpec), ("examples", Example)):
            data[key] = tuple(_record(cls, item) for item in data[key])
        return Manifest(**data)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}. Compile the model again.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: not a manifest of this version ({error}). Compile the model again.") from None


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `folder`/manifest.json; equal manifests give equal bytes."""
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_bundle(folder: Path) -> list[Manifest]:
    """Every model of the bundle, ordered by name. Raises BundleError where there is none."""
    manifests = [read_manifest(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    if not manifests:
        raise BundleError(f"{folder}: no model in this bundle. Run python -m model_server.compile models/ {folder}")
    return manifests


def rows_model(manifests: list[Manifest], wanted: str = "") -> Manifest | None:
    """The model that answers rows of unnamed numbers, such as {"X": "1 0|1 1"}; None where none does.

    That is `wanted`, or the only model whose single input is plain numbers of shape [batch, n]. Raises
    BundleError where `wanted` cannot take such rows, and where it is not given but several can.
    """

    def takes_rows(manifest: Manifest, kinds: tuple[str, ...]) -> bool:
        inputs = manifest.inputs
        return (
            len(inputs) == 1 and inputs[0].kind in kinds and len(inputs[0].shape) == 2 and inputs[0].dtype != "string"
        )

    if wanted:
        able = [manifest for manifest in manifests if takes_rows(manifest, ("tensor", "columns"))]
        for manifest in able:
            if manifest.name == wanted:
                return manifest
        names = ", ".join(manifest.name for manifest in able) or "none"
        raise BundleError(
            f"The rows model {wanted} is not in the bundle or takes no single row of numbers; these do: {names}."
        )
    able = [manifest for manifest in manifests if takes_rows(manifest, ("tensor",))]
    if len(able) > 1:
        raise BundleError(
            f"Several models take rows of unnamed numbers: {', '.join(manifest.name for manifest in able)}. "
            "Say which one answers them: model_server_rows_model."
        )
    return able[0] if able else None
