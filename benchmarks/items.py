"""What is asked: the work items, and how each kind of server takes a question and gives its answer.

A dialect turns a question into a request, or into None where its servers have no way to take it, and an answer's body
into numbers.
"""

from __future__ import annotations

import base64
import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUESTIONS = Path(__file__).parent / ".work/models/.questions.json"
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Item:
    """A kind of work. `form` is how a question travels: json, picture (a JPEG file) or binary (a V2 tensor)."""

    name: str
    title: str
    model: str
    form: str


ITEMS = (
    Item("xor-json", "XOR, 2 rows, JSON", "xor", "json"),
    Item("cnn-json", "CNN 64x64x3, JSON", "cnn", "json"),
    Item("cnn-jpeg", "CNN 64x64x3, JPEG upload", "cnn", "picture"),
    Item("cnn-binary", "CNN 64x64x3, V2 binary tensor", "cnn", "binary"),
    Item("mobilenet-jpeg", "MobileNetV2 224x224x3, JPEG upload", "mobilenet", "picture"),
    Item("lstm-json", "LSTM(64), 50 steps of 8, JSON", "lstm", "json"),
)


@dataclass(frozen=True)
class Question:
    """`rows` are nested lists with the batch axis, or None if `picture`, a file, is asked. `answer` is flat."""

    answer: list[float]
    rows: list[Any] | None = None
    picture: bytes = b""

    @property
    def shape(self) -> list[int]:
        shape, value = [], self.rows
        while isinstance(value, list):
            shape.append(len(value))
            value = value[0]
        return shape


def questions(item: Item) -> list[Question]:
    """The questions of a work item, with answers that differ."""
    asked = json.loads(QUESTIONS.read_text())[item.model]
    if item.form == "picture":
        return [Question(one["answer"], picture=base64.b64decode(one["file"])) for one in asked["pictures"]]
    return [Question(one["answer"], rows=one["rows"]) for one in asked["rows"]]


def solid_picture(model: str, size: int) -> Question:
    """A BMP file of about `size` bytes and one colour, so that its right answer is known at any size."""
    solid = json.loads(QUESTIONS.read_text())[model]["solid"][0]
    side = max(4, int((size / 3) ** 0.5) // 4 * 4)  # a row of pixels then fills whole words
    red, green, blue = solid["colour"]
    pixels = bytes((blue, green, red)) * side * side
    header = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
    return Question(solid["answer"], picture=header + pixels)


@dataclass(frozen=True)
class Request:
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Dialect(ABC):
    @abstractmethod
    def ask(self, item: Item, question: Question) -> Request | None: ...

    @abstractmethod
    def read(self, item: Item, body: bytes) -> list[float]: ...

    def fault(self, item: Item, question: Question, body: bytes) -> str | None:
        """What is wrong with an answer; None if it is right."""
        try:
            numbers = self.read(item, body)
        except (ValueError, LookupError, TypeError, struct.error) as error:
            return f"unreadable answer ({type(error).__name__}: {error}): {body[:200]!r}"
        if len(numbers) != len(question.answer):
            return f"{len(numbers)} numbers instead of {len(question.answer)}"
        worst = max(abs(got - right) for got, right in zip(numbers, question.answer, strict=True))
        return None if worst <= TOLERANCE else f"off by {worst:g}: {numbers[:3]} instead of {question.answer[:3]}"


class Slipway(Dialect):
    """TensorFlow Serving's rows, our own uploads, V2's binary tensors."""

    def ask(self, item: Item, question: Question) -> Request | None:
        if item.form == "picture":
            return _form(f"/predict/{item.model}", question.picture)
        if item.form == "binary":
            return _binary(item, question, "picture")
        return _json(f"/v1/models/{item.model}:predict", {"instances": question.rows})

    def read(self, item: Item, body: bytes) -> list[float]:
        if item.form == "binary":
            return _tensor(body)
        said = json.loads(body)
        if item.form == "picture":
            [answer] = said["answers"]
            [output] = answer.values()
            return _flat(output["values"])
        return _flat(said["predictions"])


class Bare(Slipway):
    """The endpoint that reads the same requests and computes nothing: any JSON is right."""

    def ask(self, item: Item, question: Question) -> Request | None:
        return None if item.form == "binary" else super().ask(item, question)

    def fault(self, item: Item, question: Question, body: bytes) -> str | None:
        return None if json.loads(body) else "an empty answer"


@dataclass(frozen=True)
class Own(Dialect):
    """The servers whose protocol is their user's: JSON with the model's name, and a form with a file."""

    rows: str
    pictures: str

    def ask(self, item: Item, question: Question) -> Request | None:
        if item.form == "picture":
            return _form(self.pictures.format(model=item.model), question.picture, model=item.model)
        if item.form == "binary":
            return None
        return _json(self.rows.format(model=item.model), {"model": item.model, "instances": question.rows})

    def read(self, item: Item, body: bytes) -> list[float]:
        return _flat(json.loads(body))


class KServe(Dialect):
    """KServe's V1 for rows, and for pictures as base64; V2's binary tensors."""

    def ask(self, item: Item, question: Question) -> Request | None:
        path = f"/v1/models/{item.model}:predict"
        if item.form == "picture":
            return _json(path, {"instances": [{"b64": base64.b64encode(question.picture).decode()}]})
        if item.form == "binary":
            return _binary(item, question, "input")
        return _json(path, {"instances": question.rows})

    def read(self, item: Item, body: bytes) -> list[float]:
        return _tensor(body) if item.form == "binary" else _flat(json.loads(body)["predictions"])


class MLServer(Dialect):
    """V2 in JSON; pictures as base64. It has no binary tensors over HTTP."""

    def ask(self, item: Item, question: Question) -> Request | None:
        if item.form == "binary":
            return None
        tensor: dict[str, Any] = {"name": "input", "datatype": "FP32", "shape": question.shape}
        if item.form == "picture":
            file = base64.b64encode(question.picture).decode()
            tensor |= {"datatype": "BYTES", "shape": [1], "parameters": {"content_type": "base64"}, "data": [file]}
        else:
            tensor["data"] = _flat(question.rows)
        return _json(f"/v2/models/{item.model}/infer", {"inputs": [tensor]})

    def read(self, item: Item, body: bytes) -> list[float]:
        return _flat(json.loads(body)["outputs"][0]["data"])


class MLflow(Dialect):
    """MLflow's /invocations; pictures as base64, the model's name as a parameter."""

    def ask(self, item: Item, question: Question) -> Request | None:
        if item.form == "binary":
            return None
        inputs = [base64.b64encode(question.picture).decode()] if item.form == "picture" else question.rows
        return _json("/invocations", {"inputs": inputs, "params": {"model": item.model}})

    def read(self, item: Item, body: bytes) -> list[float]:
        return _flat(json.loads(body)["predictions"])


def _flat(value: Any) -> list[float]:
    if isinstance(value, dict):
        [value] = value.values()
    if isinstance(value, list):
        return [number for part in value for number in _flat(part)]
    return [float(value)]


def _json(path: str, body: Any) -> Request:
    return Request(path, json.dumps(body, separators=(",", ":")).encode(), {"Content-Type": "application/json"})


def _form(path: str, file: bytes, **fields: str) -> Request:
    """A form as browsers send it, with the file in the field `file`."""
    mark = "slipway-benchmark"
    parts = [f'--{mark}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{fields[key]}\r\n' for key in fields]
    kind = "image/bmp" if file.startswith(b"BM") else "image/jpeg"
    parts.append(
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="picture"\r\nContent-Type: {kind}\r\n\r\n'
    )
    body = "".join(parts).encode() + file + f"\r\n--{mark}--\r\n".encode()
    return Request(path, body, {"Content-Type": f"multipart/form-data; boundary={mark}"})


def _binary(item: Item, question: Question, name: str) -> Request:
    """The V2 binary tensor extension, as tritonclient.http sends it."""
    numbers = _flat(question.rows)
    tensor = struct.pack(f"<{len(numbers)}f", *numbers)
    about = {"name": name, "shape": question.shape, "datatype": "FP32", "parameters": {"binary_data_size": len(tensor)}}
    head = json.dumps({"inputs": [about], "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return Request(f"/v2/models/{item.model}/infer", head + tensor, headers)


def _tensor(body: bytes) -> list[float]:
    """The one output of a V2 answer: after the JSON if it is binary, else in it."""
    said, _ = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    [output] = said["outputs"]
    if "data" in output:
        return _flat(output["data"])
    tensor = body[-output["parameters"]["binary_data_size"] :]
    return list(struct.unpack(f"<{len(tensor) // 4}f", tensor))
