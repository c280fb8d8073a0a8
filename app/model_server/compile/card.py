"""The model card: models/<name>/model.yml, read strictly. docs/model-card.md describes it for users.

It is the card of each version of the model, but for those with a card of their own: models/<name>/<version>/model.yml.

Everything in a card is optional, but nothing is guessed: an unknown key, a wrong type and a missing file are errors
that name the card, the key and the remedy. All mistakes of a card are reported at once.

The classes below say what a card may contain, to load_card and to editors. For these, write docs/model-card.schema.json
anew when a class changes, in app/: python -m model_server.compile.card > ../docs/model-card.schema.json
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from ..inputs import nearest
from ..manifest import CANARY, STABLE, example_files
from . import yaml12

CARD = "model.yml"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VERSION = re.compile(r"0|[1-9][0-9]{0,17}")


class CardError(ValueError):
    """The card cannot be used. Each of its arguments is a message that names the card, the key and the remedy."""

    def __str__(self) -> str:
        return "\n".join(self.args)


# ---------------------------------------------------------------- values; an error says the problem and the remedy


@dataclass(frozen=True)
class Place:
    """Where a card's files are: in the model's folder, or first in the version's.

    `versions` are those of the model; a version's own card may not speak of them.
    """

    folders: tuple[Path, ...]
    versions: tuple[str, ...] = ()
    own: bool = False

    def find(self, name: str) -> Path | None:
        """Return the path of a file or folder. What is in another version's folder is not to be found."""
        for folder in self.folders:
            top = (folder / name).resolve().relative_to(folder.resolve()).parts[:1]
            others = self.versions if folder is self.folders[-1] else ()
            if (folder / name).exists() and not {*top} & {*others}:
                return folder / name
        return None


Info = ValidationInfo[Place]


def _file(value: Any, info: Info) -> Any:
    """Return the path of a file or folder below the model's folder."""
    if not isinstance(value, str):
        return value
    folders = info.context.folders
    where = " or ".join(map(str, folders))
    for folder in folders:
        if Path(value).is_absolute() or not (folder / value).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{value} is outside the model's folder; put the file below {where}")
    path = info.context.find(value)
    if path is None:
        names = sorted(p.relative_to(folder).as_posix() for folder in folders for p in folder.rglob("*") if p.is_file())
        hint = nearest(value, names)
        raise ValueError(f"there is no file {value} in {where}{hint}; put it there or correct the name")
    return path


def _number(value: Any) -> Any:
    fraction = re.fullmatch(r"\s*([\d.]+)\s*/\s*([\d.]+)\s*", value) if isinstance(value, str) else None
    try:
        return float(fraction[1]) / float(fraction[2]) if fraction else value
    except (ValueError, ZeroDivisionError):
        return value


def _names(value: Any, info: Info) -> Any:
    """Return distinct words: from a list of words or numbers, or from the lines of the file that a text names."""
    if isinstance(value, str):
        path = _file(value, info)
        try:
            value = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise ValueError(f"{path} is not a text file; write one name per line, in UTF-8") from None
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{_show(value)} is not a list; write [first, second, …] or a file's name")
    if any(not isinstance(item, str | int | float) for item in value):
        raise ValueError(f"{_show(value)} contains something that is not a word; put each name in quotes")
    names = tuple(str(item).lower() if isinstance(item, bool) else str(item) for item in value)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} is given twice; each name must be different")
    return names


def _sizes(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not value or any(type(size) is not int or size < 1 for size in value):
        raise ValueError(f"{_show(value)} is not a row's shape; write whole numbers from 1, such as [10001, 4]")
    return tuple(value)


Text = Annotated[str, StringConstraints(strip_whitespace=True)]
File = Annotated[Path, BeforeValidator(_file), WithJsonSchema({"type": "string"})]
Number = Annotated[
    float,
    Field(allow_inf_nan=False),
    BeforeValidator(_number),
    WithJsonSchema({"type": ["number", "string"], "pattern": r"^\s*[\d.]+\s*/\s*[\d.]+\s*$"}),
]
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_names),
    WithJsonSchema(
        {
            "type": ["array", "string"],
            "items": {"type": ["string", "number", "boolean"]},
            "minItems": 1,
            "uniqueItems": True,
        }
    ),
]
Shape = Annotated[
    tuple[int, ...],
    BeforeValidator(_sizes),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1}),
    Field(description="A row's shape, without the batch, for a model whose free sizes must not be too small."),
]


# ---------------------------------------------------------------- the card


class _Mapping(BaseModel):
    """A mapping with known keys. A key without a value counts as left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class TensorInput(_Mapping):
    """Nested lists of numbers, or of text if the model takes strings."""

    kind: Literal["tensor"]
    shape: Shape = ()


class ImageInput(_Mapping):
    """A picture, stretched to the model's size; each pixel, 0 … 255, becomes pixel * scale + offset."""

    kind: Literal["image"]
    shape: Shape = ()
    color: Literal["grayscale", "rgb"] | None = Field(None, description="By default, what the model's channels say.")
    scale: Number = Field(1.0, description="A number, or a fraction such as 1/255.")
    offset: Number = Field(0.0, description="A number, or a fraction such as 1/2.")
    invert: bool = Field(False, description="true if the model learned light ink on dark and users send dark on light.")


class ColumnsInput(_Mapping):
    """A row of named numbers."""

    kind: Literal["columns"]
    columns: Names = Field(description="The columns' names in the model's order, or a file with one per line.")


class NumbersOutput(_Mapping):
    """Numbers, as the model answers them."""

    kind: Literal["numbers"]


class BinaryOutput(_Mapping):
    """One probability: the second label if it is above the threshold, else the first."""

    kind: Literal["binary"]
    labels: Names = Field((), description="Two labels, such as [no, yes], or a file with one per line.")
    threshold: Number = Field(0.5, gt=0, lt=1)

    @field_validator("labels")
    @classmethod
    def _two(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) != 2:
            raise ValueError(f"{len(labels)} labels for a yes-or-no answer; write [no, yes]")
        return labels


class ClassesOutput(_Mapping):
    """One score for each label, once or for each step."""

    kind: Literal["classes"]
    labels: Names = Field(description="One label for each class, or a file with one per line.")


class ImageOutput(_Mapping):
    """A picture, answered as PNG. Each of the model's numbers is pixel * scale + offset, the pixel within 0 … 255."""

    kind: Literal["image"]
    scale: Number = Field(1.0, gt=0, description="A number, or a fraction such as 1/255; usually the input's.")
    offset: Number = Field(0.0, description="A number, or a fraction such as 1/2; usually the input's.")


class ExampleCard(_Mapping):
    """A question with its right answer. `expect` may be short: the answer alone if the model has one output."""

    name: Text = Field("", description="By default, the example's number.")
    input: Any = Field(description="A picture's file below examples/, a number, a text, lists, or an object of these.")
    expect: Any = Field(
        None,
        description="A label, a number or a list of numbers; or an object of these, by output. By default, what the "
        "model itself answers when it is compiled.",
    )
    tolerance: Number = Field(
        0.01,
        ge=0,
        description="The largest difference of a number that counts as right; without expect, as a share of the "
        "answer's largest number.",
    )


def _label(name: str) -> str:
    if not NAME.fullmatch(name) or name.isdecimal():
        raise ValueError(f"{name!r} cannot be part of an address; use lower-case letters, digits, _ and - only")
    return name


def _version(number: int, info: Info) -> int:
    if str(number) not in info.context.versions:
        raise ValueError(f"there is no version {number}; the model has {', '.join(info.context.versions) or 'none'}")
    return number


class VersionsCard(_Mapping):
    """Which of the model's numbered folders is what."""

    labels: dict[Annotated[str, AfterValidator(_label)], Annotated[int, AfterValidator(_version)]] = Field(
        {},
        description="Label → version. stable answers requests that name no version; by default it is the highest.",
    )
    canary_share: Number = Field(
        0.0, ge=0, lt=1, description="The share of the requests that name no version that goes to the label canary."
    )

    @model_validator(mode="after")
    def _canary_is_another(self, info: Info) -> VersionsCard:
        canary = self.labels.get(CANARY)
        if self.canary_share and canary is None:
            raise ValueError("no version has the label canary for canary_share; write labels: {canary: …}")
        if self.canary_share and canary == self.labels.get(STABLE, int(info.context.versions[-1])):
            raise ValueError(
                f"version {canary} is both the canary and stable, which by default is the highest; label another "
                "version stable"
            )
        return self


InputCard = Annotated[TensorInput | ImageInput | ColumnsInput, Field(discriminator="kind")]
OutputCard = Annotated[NumbersOutput | BinaryOutput | ClassesOutput | ImageOutput, Field(discriminator="kind")]


def _named(examples: list[ExampleCard]) -> list[ExampleCard]:
    named = [one.model_copy(update={"name": one.name or str(number)}) for number, one in enumerate(examples, 1)]
    names = [one.name for one in named]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two are named {twice!r}; give each its own name")
    return named


class Card(_Mapping):
    """A model card. Everything is optional; a model without a card takes and answers plain numbers."""

    title: Text = Field("", description="What the page shows as the model's name.")
    description: Text = Field("", description="What the page shows below the title.")
    model: File = Field(
        default_factory=Path,
        validate_default=True,
        description="The model's file or folder; needed if there are several.",
    )
    weights: File | None = Field(
        None, validate_default=True, description="The file with an architecture's weights; needed if there are several."
    )
    custom_objects: File | None = Field(None, description="A Python file with the model's own layers and functions.")
    engine: Literal["litert", "onnx", "tensorflow"] | None = Field(
        None, description="The engine that serves the model; by default, the fastest that answers as the model does."
    )
    goal: Literal["latency", "throughput"] = Field(
        "latency", description="What the engines are compared by: a single row's time, or rows a second in batches."
    )
    allow_lambda: bool = Field(False, description="true lets Lambda layers run: only for files that you trust.")
    inputs: dict[str, InputCard] = Field({}, description="By the model's own names; one left out is plain numbers.")
    outputs: dict[str, OutputCard] = Field({}, description="By the model's own names; one left out is plain numbers.")
    examples: Annotated[list[ExampleCard], AfterValidator(_named)] = Field([], description="Checked at every release.")
    predict: bool = Field(False, description="true lets the model answer POST /predict, which names no model.")
    versions: VersionsCard | None = Field(None, description="Of a model with a numbered folder for each version.")
    _place: Place = PrivateAttr()
    _path: Path = PrivateAttr()
    _version: str = PrivateAttr()

    @property
    def name(self) -> str:
        return self._place.folders[-1].name

    @property
    def version(self) -> str:
        """The version's number; empty if the model has no numbered folders."""
        return self._version

    @property
    def path(self) -> Path:
        """Where the card is, or would be."""
        return self._path

    def file(self, name: str) -> Path:
        """Return the path of a file that the card names."""
        return self._place.find(name) or self._place.folders[0] / name

    @field_validator("versions", mode="before")
    @classmethod
    def _of_all(cls, value: Any, info: Info) -> Any:
        place = info.context
        if place.own:
            raise ValueError(f"this is the card of one version; move it to {place.folders[-1] / CARD}")
        if not place.versions:
            raise ValueError(
                f"the model has no numbered folders; put each version into one, such as {place.folders[-1] / '1'}, or "
                "leave it out"
            )
        return value

    @field_validator("examples")
    @classmethod
    def _files_exist(cls, examples: list[ExampleCard], info: Info) -> list[ExampleCard]:
        pictures = [name for name, one in info.data.get("inputs", {}).items() if one.kind == "image"]
        for example in examples:
            for name in example_files(example.input, pictures):
                if not _file(name, info).is_file():
                    raise ValueError(f"{example.name}: {name} is not a file; name one file")
                if Path(name).parts[0] != "examples" or ".." in Path(name).parts:
                    raise ValueError(f"{example.name}: {name} is not below examples/; move the file there")
        return examples

    @field_validator("model", mode="before")
    @classmethod
    def _find_model(cls, value: Any, info: Info) -> Any:
        path = _only_model(info.context.folders[0]) if value == Path() else _file(value, info)
        if isinstance(path, Path) and not (path.suffix in (".keras", ".json", *WEIGHTS) or _is_saved_model(path)):
            raise ValueError(
                f"{path.name} is not a Keras model; name a .keras, .h5 or .hdf5 file, an architecture .json or a "
                "SavedModel folder"
            )
        return path

    @field_validator("weights", mode="before")
    @classmethod
    def _find_weights(cls, value: Any, info: Info) -> Any:
        weights, model = _file(value, info), info.data.get("model")  # no model: that is a mistake of its own
        if model and model.suffix == ".json":
            return weights or _only_weights(info.context.folders[0], model)
        if model and weights:
            raise ValueError(f"{model.name} has its own weights; leave weights out")
        return weights

    @field_validator("custom_objects")
    @classmethod
    def _is_python(cls, path: Path | None) -> Path | None:
        if path and path.suffix != ".py":
            raise ValueError(f"{path.name} is not a Python file; name a .py file")
        return path


class _VersionsOnly(_Mapping):
    model_config = ConfigDict(extra="allow")

    versions: VersionsCard = Field(default_factory=VersionsCard.model_construct)


Read = TypeVar("Read", bound=_Mapping)


def find_versions(folder: Path) -> tuple[str, ...]:
    """Return the versions of the model in `folder`, the lowest first: its numbered folders, none of most models.

    Raises CardError.
    """
    _check_name(folder)
    numbers = [path.name for path in folder.iterdir() if path.is_dir() and re.fullmatch("[0-9]+", path.name)]
    mistakes = [
        f"{folder / name}: a version is a whole number of at most 18 digits, without leading zeros. Rename the folder."
        for name in sorted(numbers)
        if not VERSION.fullmatch(name)
    ]
    if numbers:
        mistakes += [
            f"{path}: is beside the model's versions. Move it into a numbered folder, such as {folder / '1'}."
            for path in _models_in(folder)
        ]
    mistakes += [
        f"{folder / name}: no model is in it. Put this version of the model there, or remove the folder."
        for name in sorted(numbers)
        if VERSION.fullmatch(name) and not _models_in(folder / name)
    ]
    if mistakes:
        raise CardError(*mistakes)
    return tuple(sorted(numbers, key=int))


def load_card(folder: Path, version: str = "") -> Card:
    """Read and check the card of the model in `folder`, of one of its versions if it has several. Raises CardError.

    A folder without a card gets an empty one. Whether the card fits the model's own inputs and outputs is for the
    compiler to check.
    """
    _check_name(folder)
    own = folder / version / CARD
    path = own if own.exists() else folder / CARD
    folders = (folder / version, folder) if version else (folder,)
    place = Place(folders, find_versions(folder), own=bool(version) and path == own)
    card = _read(Card, path, place)
    card._place, card._path, card._version = place, path, version
    return card


def load_versions(folder: Path) -> VersionsCard:
    """Read and check what the card says of the versions of the model in `folder`. Raises CardError."""
    place = Place((folder,), find_versions(folder))
    card = _read(_VersionsOnly, folder / CARD, place)
    if card.model_extra and all((folder / version / CARD).exists() for version in place.versions):
        raise CardError(
            f"{folder / CARD}: each version has a card of its own, so nothing reads {', '.join(card.model_extra)} "
            "here. Remove it."
        )
    return card.versions


def _check_name(folder: Path) -> None:
    if not folder.is_dir():
        raise CardError(f"{folder}: there is no such model folder.")
    if not NAME.fullmatch(folder.name):
        raise CardError(
            f"{folder}: a model's folder name becomes part of its address; use lower-case letters, digits, _ "
            "and - only (at most 64, a letter or digit first)."
        )


def _read(what: type[Read], path: Path, place: Place) -> Read:
    try:
        data = yaml12.load(path.read_text(encoding="utf-8")) if path.exists() else {}
        return what.model_validate({} if data is None else data, context=place)
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise CardError(f"{path}: not UTF-8. Save the card as UTF-8 text.") from None
    except yaml12.YamlError as error:
        raise CardError(f"{path}: {error}.") from None
    except ValidationError as error:
        where = path if path.exists() else place.folders[0]
        raise CardError(*(f"{where}: {_worded(mistake)}." for mistake in error.errors())) from None


# ---------------------------------------------------------------- the model's files

WEIGHTS = (".h5", ".hdf5")


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


def _models_in(folder: Path) -> list[Path]:
    """Return the models in the folder. Beside an architecture .json, an .h5 is its weights."""
    if _is_saved_model(folder):
        return [folder / name for name in ("saved_model.pb", "saved_model.pbtxt") if (folder / name).exists()]
    entries = sorted(folder.iterdir())
    found = [path for path in entries if path.suffix == ".keras" or _is_architecture(path) or _is_saved_model(path)]
    if not any(path.suffix == ".json" for path in found):
        found += [path for path in entries if path.suffix in WEIGHTS]
    return found


def _only_model(folder: Path) -> Path:
    if _is_saved_model(folder):
        return folder
    found = _models_in(folder)
    if not found:
        raise ValueError(
            "there is no model here; put a .keras, .h5 or .hdf5 file, an architecture .json with its weights .h5, or a "
            "SavedModel folder into the folder; each of several versions goes into a numbered one, such as 1"
        )
    if len(found) > 1:
        raise ValueError(f"several are here ({', '.join(path.name for path in found)}); name the one to serve")
    return found[0]


def _only_weights(folder: Path, architecture: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)
    if not found:
        raise ValueError(f"{architecture.name} is an architecture without weights; put its weights .h5 beside it")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"several are here ({names}); name the one that belongs to {architecture.name}")
    return found[0]


# ---------------------------------------------------------------- errors

KINDS: dict[int | str, dict[int | str, type[_Mapping]]] = {
    "inputs": {"tensor": TensorInput, "image": ImageInput, "columns": ColumnsInput},
    "outputs": {"numbers": NumbersOutput, "binary": BinaryOutput, "classes": ClassesOutput, "image": ImageOutput},
}
# By pydantic's types of errors: what is wrong with the value, and the remedy.
PROBLEMS = {
    "model_type": "is not a mapping; write name: {…} below it",
    "model_attributes_type": "is not a mapping; write name: {…} below it",
    "dict_type": "is not a mapping; write name: {…} below it",
    "list_type": "is not a list; write - name: … for each",
    "string_type": "is not text; put it in quotes",
    "is_instance_of": "is not text; write a file's name",
    "bool_type": "is neither true nor false; write true or false",
    "float_type": "is not a number; write a number, or a fraction such as 1/255",
    "finite_number": "is not a number; write a number, or a fraction such as 1/255",
    "greater_than": "is not above 0; write for example 0.5",
    "less_than": "is not below 1; write for example 0.5",
    "greater_than_equal": "is negative; write for example 0.01",
    "int_type": "is not a whole number; write a version's number, such as 2",
}


def _worded(mistake: ErrorDetails) -> str:
    """Return one of pydantic's errors in our words: the place in the card: the problem; the remedy."""
    place, kind, context = list(mistake["loc"]), mistake["type"], mistake.get("ctx", {})
    mapping: type[_Mapping] = Card
    if place[:1] == ["examples"] and len(place) > 2:
        mapping = ExampleCard
    elif place[:1] == ["versions"] and len(place) > 1:
        mapping = VersionsCard
    elif place and place[0] in KINDS and len(place) > 2:
        mapping = KINDS[place[0]][place.pop(2)]
    if place[-1:] == ["[key]"]:
        place.pop()
    if kind == "value_error":
        text = str(context["error"])
    elif kind == "extra_forbidden":
        known = list(mapping.model_fields)
        text = f"unknown key{nearest(str(place[-1]), known)}; known keys: {', '.join(known)}"
    elif kind == "missing":
        key = str(place.pop())
        text = f"{key} is missing; add it: {mapping.model_fields[key].description}".rstrip(".")
    elif kind == "union_tag_not_found":
        text = f"kind is missing; write kind: {', '.join(map(str, KINDS[place[0]]))}"
    elif kind == "union_tag_invalid":
        place.append("kind")
        text = f"{context['tag']} is not one of {', '.join(map(str, KINDS[place[0]]))}; choose one of them"
    elif kind == "literal_error":
        text = f"{_show(mistake['input'])} is not {context['expected']}; choose one of them"
    elif not place:
        text = f"{_show(mistake['input'])} is not a mapping; write fields, such as title: …"
    elif mapping is Card and place[0] == "examples" and kind in ("model_type", "model_attributes_type"):
        text = f"{_show(mistake['input'])} is not a mapping; write {{input: …, expect: …}}"
    else:
        text = f"{_show(mistake['input'])} {PROBLEMS.get(kind, mistake['msg'])}"
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
    return f"{where or 'the card'}: {text}"


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def schema() -> str:
    """Return the JSON Schema of a card, as it is in docs/model-card.schema.json."""
    return json.dumps(Card.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
