"""JSON Schemas of what a model takes and answers, and examples of both: for the OpenAPI document."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .engines import Tensors
from .inputs import encode_example, zeros
from .manifest import Example, InputSpec, Manifest, OutputSpec, TensorSpec, replace_files

Schema = dict[str, Any]

FILE: Schema = {"$ref": "#/components/schemas/File"}
INDEX: Schema = {"type": ["integer", "null"]}
FORMATS = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Sample:
    """An example of a card as clients send it.

    `row` has its files as `{"b64": "…"}`; `picture` is the file's path if the row is one. `inputs` are its tensors, a
    batch of one. `outputs` are the right answer's, or None if the card expects only a part of it. `expects` says in a
    sentence what is right: the card's answer or, if that is `recorded`, the model's own.
    """

    name: str
    row: Any
    picture: str | None
    inputs: Tensors
    outputs: Tensors | None
    expects: str = ""
    recorded: bool = False


def samples(manifest: Manifest, folder: Path) -> list[Sample]:
    """Return the card's examples, or zeros if it has none."""
    if manifest.examples:
        return [_sample(manifest, example, folder) for example in manifest.examples]
    tensors = zeros(manifest)
    values = {name: listed(array[0]) for name, array in tensors.items()}
    row = values if len(values) > 1 else values[manifest.inputs[0].name]
    return [Sample("zeros", row, None, tensors, None)]


def listed(value: Any) -> Any:
    """Return an array as the JSON encoder takes it: itself or, if it holds text, nested lists."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return [listed(item) for item in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def row(manifest: Manifest) -> Schema:
    """Return the schema of a row: the bare value of a single input, or an object by the names of inputs and columns."""
    if len(manifest.inputs) == 1:
        return {"anyOf": [_value(manifest.inputs[0]), named_row(manifest)]}
    return named_row(manifest)


def named_row(manifest: Manifest) -> Schema:
    properties: dict[str, Schema] = {}
    required: list[str] = []
    choices: list[Schema] = []
    for spec in manifest.inputs:
        properties |= dict.fromkeys(spec.columns, scalar(spec))
        properties[spec.name] = {"anyOf": [scalar(spec), _value(spec)]} if spec.name in spec.columns else _value(spec)
        if spec.columns:
            choices.append({"anyOf": [{"required": spec.columns}, {"required": [spec.name]}]})
        else:
            required.append(spec.name)
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = required
    if choices:
        schema |= {"allOf": choices, "description": "All columns of an input, or the whole input by its own name"}
    return schema


def answer(manifest: Manifest) -> Schema:
    """Return the schema of the answer to one row, as answers.decode gives it."""
    return by_name({spec.name: _decoded(spec) for spec in manifest.outputs})


def verdict(spec: OutputSpec) -> Schema:
    """Return the schema of an output's answer in short, as answers.verdict gives it."""
    return tensor(spec, nullable=True) if spec.kind in ("numbers", "image") else _a_step(spec, INDEX)


def by_name(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def tensor(spec: TensorSpec, batch: bool = False, nullable: bool = False) -> Schema:
    """Return the schema of the tensor as nested lists, with or without the batch axis."""
    return _nested(scalar(spec, nullable), spec.shape if batch else spec.shape[1:])


def _nested(schema: Schema, shape: Sequence[int]) -> Schema:
    for size in reversed(shape):
        schema = {"type": "array", "items": schema, "minItems": max(size, 1)}
        if size > 0:
            schema["maxItems"] = size
    return schema


def scalar(spec: TensorSpec, nullable: bool = False) -> Schema:
    """Return the schema of one of the tensor's values; if `nullable`, null is a number that is not finite."""
    if spec.dtype == "string":
        base64_too = isinstance(spec, InputSpec) or spec.name.endswith("_bytes")
        return {"anyOf": [{"type": "string"}, FILE]} if base64_too else {"type": "string"}
    if spec.dtype == "bool":
        return {"type": "boolean"}
    if np.dtype(spec.dtype).kind == "f":
        return {"type": ["number", "null"] if nullable else "number", "format": FORMATS.get(spec.dtype, spec.dtype)}
    return {"type": "integer", "format": spec.dtype}


def _value(spec: InputSpec) -> Schema:
    return {"anyOf": [FILE, tensor(spec)]} if spec.kind == "image" else tensor(spec)


def _decoded(spec: OutputSpec) -> Schema:
    if spec.kind == "image":
        return by_name({"image": {"anyOf": [FILE, {"type": "null"}]}})
    values = {"values": tensor(spec, nullable=True)}
    if spec.kind == "numbers":
        return by_name(values)
    labels = {"enum": [*spec.labels, None]} if spec.labels else {"type": ["string", "null"]}
    schema = by_name({"index": _a_step(spec, INDEX), "label": _a_step(spec, labels), **values})
    probability = {"type": ["number", "null"] if len(spec.shape) > 2 else "number", "minimum": 0, "maximum": 1}
    schema["properties"]["probability"] = _a_step(spec, probability)
    return schema


def _a_step(spec: OutputSpec, schema: Schema) -> Schema:
    """Return the schema of a list of these, one for each step, where each step has scores of its own."""
    return _nested(schema, spec.shape[1:-1])


def _sample(manifest: Manifest, example: Example, folder: Path) -> Sample:
    def sent(file: str) -> dict[str, str]:
        return {"b64": base64.b64encode((folder / file).read_bytes()).decode()}

    given = example.input
    recorded = any(isinstance(value, dict) for value in example.expect.values())
    expected = ", ".join(f"{name}: {value}" for name, value in example.expect.items())
    return Sample(
        name=example.name,
        row=replace_files(given, manifest.pictures, sent),
        picture=given if isinstance(given, str) and manifest.pictures else None,
        inputs=encode_example(manifest, example, folder),
        outputs=_expected(manifest, example),
        expects="The model's own answer, recorded when it was compiled."
        if recorded
        else f"The card expects {expected}.",
        recorded=recorded,
    )


def _expected(manifest: Manifest, example: Example) -> Tensors | None:
    """Return the expected answer as tensors; of a label the whole score is its class's."""
    tensors = {}
    for spec in manifest.outputs:
        value = example.expect.get(spec.name)
        if value is None:
            return None
        try:
            if isinstance(value, dict):  # recorded: all of the numbers, or too few of them
                value = np.reshape(value["values"], value["shape"])
            elif spec.kind in ("classes", "binary") and isinstance(value, str | bool | int):
                value = _scores(spec, spec.labels.index(value) if value in spec.labels else int(value))
            array = np.asarray(value, str if spec.dtype == "string" else spec.dtype)
            tensors[spec.name] = array.reshape([1, *spec.shape[1:]])
        except (TypeError, ValueError):  # not all of the output's numbers
            return None
    return tensors


def _scores(spec: OutputSpec, index: int) -> Any:
    return index if spec.kind == "binary" else np.arange(spec.shape[-1]) == index
