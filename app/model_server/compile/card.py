"""The model card: models/<name>/model.yml, read strictly.

Everything in a card is optional, but nothing in it is guessed: an unknown key, a wrong type or a file that is
not there is an error that names the file, the field and the remedy. docs/model-card.md is the user's side of
this module.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..manifest import example_files

CARD = "model.yml"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class CardError(ValueError):
    """The card cannot be used; each of its arguments is a message that names file, field and remedy."""

    def __str__(self) -> str:
        return "\n".join(self.args)


def _gather(checks: Iterable[Callable[[], Any]]) -> list[Any]:
    """The results of all checks; where some fail, one CardError with the messages of all of them."""
    results: list[Any] = []
    messages: list[str] = []
    for check in checks:
        try:
            results.append(check())
        except CardError as error:
            messages += error.args
    if messages:
        raise CardError(*messages)
    return results


@dataclass(frozen=True)
class InputCard:
    """How what a user sends becomes an input tensor. `kind` is "tensor", "image" or "columns"."""

    kind: str = "tensor"
    color: str = ""
    scale: float = 1.0
    offset: float = 0.0
    invert: bool = False
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutputCard:
    """How an output tensor becomes an answer. `kind` is "numbers", "binary" or "classes"."""

    kind: str = "numbers"
    labels: tuple[str, ...] = ()
    threshold: float = 0.5


@dataclass(frozen=True)
class ExampleCard:
    """One example as written; `expect` is still in the short form where the model has a single output."""

    name: str
    input: Any
    expect: Any
    tolerance: float = 0.01


@dataclass(frozen=True)
class Card:
    """A checked card.

    `model` and `weights` are paths below `folder`; `model` is found where the card is silent.
    """

    name: str
    folder: Path
    model: Path
    weights: Path | None = None
    title: str = ""
    description: str = ""
    custom_objects: Path | None = None
    allow_lambda: bool = False
    inputs: dict[str, InputCard] = field(default_factory=dict)
    outputs: dict[str, OutputCard] = field(default_factory=dict)
    examples: tuple[ExampleCard, ...] = ()

    @property
    def path(self) -> Path:
        """Where the card is, or would be."""
        return self.folder / CARD


def load_card(folder: Path) -> Card:
    """Read and check the card of the model in `folder`; without a card the model speaks plain tensors.

    Raises CardError. Whether the card fits the model's own inputs and outputs is the compiler's to check.
    """
    path = folder / CARD
    if not folder.is_dir():
        raise CardError(f"{folder}: there is no such model folder.")
    if not NAME.fullmatch(folder.name):
        raise CardError(
            f"{folder}: a model's folder name becomes part of its address; use lower-case letters, digits, _ "
            "and - only (at most 64, a letter or digit first)."
        )
    data = _parse(path) if path.exists() else {}
    reader = _Reader(path)
    fields, inputs, outputs, examples = _gather(
        [
            lambda: _files(reader, reader.fields(data, "the card", _FIELDS)),
            lambda: _each(reader, data.get("inputs"), "inputs", _input),
            lambda: _each(reader, data.get("outputs"), "outputs", _output),
            lambda: _examples(reader, data.get("examples")),
        ]
    )
    return Card(name=folder.name, folder=folder, inputs=inputs, outputs=outputs, examples=examples, **fields)


def _files(reader: _Reader, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with the model's files in them, named or found; those of inputs, outputs and examples left out."""
    folder = reader.path.parent
    fields = {key: value for key, value in fields.items() if key not in ("inputs", "outputs", "examples")}
    for key in ("custom_objects", "weights", "model"):
        if key in fields:
            fields[key] = reader.file(fields[key], key)
    if "custom_objects" in fields and fields["custom_objects"].suffix != ".py":
        raise reader.error("custom_objects", f"{fields['custom_objects'].name} is not a Python file", "name a .py file")
    if "model" not in fields:
        fields["model"] = _find_model(folder, fields.get("weights"))
    if not (fields["model"].suffix in (".keras", ".h5", ".hdf5", ".json") or _is_saved_model(fields["model"])):
        raise reader.error(
            "model",
            f"{fields['model'].name} is no Keras model",
            "name a .keras, .h5 or .hdf5 file, an architecture .json or a SavedModel folder",
        )
    if fields["model"].suffix == ".json" and "weights" not in fields:
        fields["weights"] = _find_weights(folder, fields["model"])
    elif fields["model"].suffix != ".json" and "weights" in fields:
        raise reader.error("weights", f"{fields['model'].name} carries its own weights", "leave weights out")
    return fields


# ---------------------------------------------------------------- reading YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars (`no` is a word, 1e-3 a number), and a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value)


_Loader.add_constructor("tag:yaml.org,2002:int", _int)  # PyYAML would read 010 as eight


def _parse(path: Path) -> dict[Any, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise CardError(f"{path}: not UTF-8. Save the card as UTF-8 text.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise CardError(f"{path}: {where}not valid YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise CardError(f"{path}: not valid YAML: {error}.") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CardError(f"{path}: a card is a mapping of fields (title: …), not a {type(data).__name__}.")
    return data


# ---------------------------------------------------------------- checking fields


class _Reader:
    """Checks values of one card and words the errors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, where: str, problem: str, remedy: str) -> CardError:
        return CardError(f"{self.path}: {where}: {problem}; {remedy}.")

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(where, f"{_show(value)} is not a mapping", "write name: {…} below it")
        return {str(key): item for key, item in value.items()}

    def fields(self, value: Any, where: str, known: dict[str, _Check]) -> dict[str, Any]:
        """Check a mapping against its known keys; a check gets the reader, the value and its place."""
        value = self.mapping(value, where)
        prefix = "" if where == "the card" else f"{where}."

        def check(key: str, item: Any) -> tuple[str, Any]:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise self.error(
                    f"{prefix}{key}",
                    f"unknown key in {where}",
                    (f"perhaps you mean {near[0]}; " if near else "") + f"known keys: {', '.join(known)}",
                )
            return key, None if item is None else known[key](self, item, f"{prefix}{key}")

        checked = _gather([partial(check, key, item) for key, item in value.items()])
        return {key: item for key, item in checked if item is not None}

    def choice(self, value: Any, where: str, choices: Iterable[str]) -> str:
        choices = list(choices)
        if value not in choices:
            raise self.error(where, f"{_show(value)} is not one of {', '.join(choices)}", "choose one of them")
        return str(value)

    def file(self, value: str, where: str) -> Path:
        """A path below the model's folder that exists."""
        folder = self.path.parent
        path = folder / value
        if Path(value).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
            raise self.error(where, f"{value} is outside the model's folder", f"put the file below {folder}")
        if not path.exists():
            names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            near = difflib.get_close_matches(value, names, n=1)
            raise self.error(
                where,
                f"there is no file {value} in {folder}",
                f"perhaps you mean {near[0]}" if near else "put it there or correct the name",
            )
        return path


_Check = Callable[[_Reader, Any, str], Any]


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _text(reader: _Reader, value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise reader.error(where, f"{_show(value)} is not text", "put it in quotes")
    return value.strip()


def _flag(reader: _Reader, value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise reader.error(where, f"{_show(value)} is neither true nor false", "write true or false")
    return value


def _number(reader: _Reader, value: Any, where: str) -> float:
    if isinstance(value, str) and (parts := re.fullmatch(r"\s*([\d.]+)\s*/\s*([\d.]+)\s*", value)):
        with contextlib.suppress(ValueError, ZeroDivisionError):
            value = float(parts[1]) / float(parts[2])
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise reader.error(where, f"{_show(value)} is not a number", "write a number, or a fraction such as 1/255")
    return float(value)


def _names(reader: _Reader, value: Any, where: str) -> tuple[str, ...]:
    """A list of distinct words or numbers; or the name of a file that holds one a line."""
    if isinstance(value, str):
        path = reader.file(value, where)
        try:
            value = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise reader.error(where, f"{path} is not a text file", "write one name a line, in UTF-8") from None
    if not isinstance(value, list) or not value:
        raise reader.error(where, f"{_show(value)} is not a list", "write [first, second, …] or a file's name")
    if any(not isinstance(item, str | int | float) for item in value):
        raise reader.error(where, f"{_show(value)} holds something that is not a word", "put each name in quotes")
    names = tuple(str(item).lower() if isinstance(item, bool) else str(item) for item in value)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise reader.error(where, f"{twice!r} is given twice", "each name must be different")
    return names


def _anything(reader: _Reader, value: Any, where: str) -> Any:
    return value


_FIELDS: dict[str, _Check] = {
    "title": _text,
    "description": _text,
    "model": _text,
    "weights": _text,
    "custom_objects": _text,
    "allow_lambda": _flag,
    "inputs": _anything,
    "outputs": _anything,
    "examples": _anything,
}
_INPUTS: dict[str, dict[str, _Check]] = {
    "tensor": {},
    "image": {"color": _text, "scale": _number, "offset": _number, "invert": _flag},
    "columns": {"columns": _names},
}
_OUTPUTS: dict[str, dict[str, _Check]] = {
    "numbers": {},
    "binary": {"labels": _names, "threshold": _number},
    "classes": {"labels": _names},
}
_EXAMPLE: dict[str, _Check] = {"name": _text, "input": _anything, "expect": _anything, "tolerance": _number}


def _kind(reader: _Reader, value: Any, where: str, kinds: dict[str, dict[str, _Check]]) -> dict[str, Any]:
    value = reader.mapping(value, where)
    if "kind" not in value:
        raise reader.error(where, "kind is missing", f"write kind: {', '.join(kinds)}")
    kind = reader.choice(value["kind"], f"{where}.kind", kinds)
    return reader.fields(value, where, {"kind": _anything, **kinds[kind]})


def _input(reader: _Reader, value: Any, where: str) -> InputCard:
    fields = _kind(reader, value, where, _INPUTS)
    if "color" in fields:
        reader.choice(fields["color"], f"{where}.color", ("grayscale", "rgb"))
    if fields["kind"] == "columns" and "columns" not in fields:
        raise reader.error(where, "columns is missing", "list the columns' names in the model's order")
    return InputCard(**fields)


def _output(reader: _Reader, value: Any, where: str) -> OutputCard:
    fields = _kind(reader, value, where, _OUTPUTS)
    labels = fields.get("labels", ())
    if fields["kind"] == "classes" and not labels:
        raise reader.error(where, "labels is missing", "list one label a class, or leave this output out")
    if fields["kind"] == "binary" and len(labels) not in (0, 2):
        raise reader.error(f"{where}.labels", f"{len(labels)} labels for a yes-or-no answer", "write [no, yes]")
    if not 0 < fields.get("threshold", 0.5) < 1:
        raise reader.error(f"{where}.threshold", "a probability lies between 0 and 1", "write for example 0.5")
    return OutputCard(**fields)


def _each(reader: _Reader, value: Any, where: str, check: Callable[[_Reader, Any, str], Any]) -> dict[str, Any]:
    """Check each of the inputs, or of the outputs, by name."""
    named = reader.mapping({} if value is None else value, where)
    checked = _gather([partial(check, reader, item, f"{where}.{name}") for name, item in named.items()])
    return dict(zip(named, checked, strict=True))


def _example(reader: _Reader, number: int, value: Any) -> ExampleCard:
    where = f"examples[{number}]"
    fields = reader.fields(value, where, _EXAMPLE)
    for key in ("input", "expect"):
        if key not in fields:
            raise reader.error(where, f"{key} is missing", "an example is name, input and expect")
    for name in example_files(fields["input"]):
        if not reader.file(name, f"{where}.input").is_file():
            raise reader.error(f"{where}.input", f"{name} is not a file", "name one file")
        if Path(name).parts[0] != "examples" or ".." in Path(name).parts:
            raise reader.error(f"{where}.input", f"{name} is not below examples/", "move the file there")
    fields.setdefault("name", str(number + 1))
    if fields.get("tolerance", 0.0) < 0:
        raise reader.error(f"{where}.tolerance", "a tolerance is not negative", "write for example 0.01")
    return ExampleCard(**fields)


def _examples(reader: _Reader, value: Any) -> tuple[ExampleCard, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise reader.error("examples", f"{_show(value)} is not a list", "write - name: … for each example")
    examples = _gather([partial(_example, reader, number, item) for number, item in enumerate(value)])
    names = [example.name for example in examples]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise reader.error("examples", f"two are named {twice!r}", "give each its own name")
    return tuple(examples)


# ---------------------------------------------------------------- finding the model's files


def _is_saved_model(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt"))


def _is_architecture(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and "class_name" in data and "config" in data


def _find_model(folder: Path, weights: Path | None) -> Path:
    """The only model in the folder. Beside an architecture .json an .h5 is its weights."""
    if _is_saved_model(folder):
        return folder
    entries = sorted(folder.iterdir())
    found = [path for path in entries if path.suffix == ".keras" or _is_architecture(path) or _is_saved_model(path)]
    if not any(path.suffix == ".json" for path in found):
        found += [path for path in entries if path.suffix in (".h5", ".hdf5") and path != weights]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CardError(
            f"{folder}: no model here. Put a .keras, .h5 or .hdf5 file, an architecture .json with its "
            "weights .h5, or a SavedModel folder into it."
        )
    names = ", ".join(path.name for path in found)
    raise CardError(f"{folder / CARD}: model: several models are here ({names}); name the one to serve.")


def _find_weights(folder: Path, architecture: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.suffix in (".h5", ".hdf5"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise CardError(
            f"{folder}: {architecture.name} is an architecture without weights. Put its weights .h5 beside it."
        )
    names = ", ".join(path.name for path in found)
    raise CardError(f"{folder / CARD}: weights: several are here ({names}); name those of {architecture.name}.")
