"""Parses JSON with large arrays of numbers into NumPy arrays, several times faster than by way of lists."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import simdjson

# Below this, orjson and NumPy take as long.
ARRAY_BYTES = 500
# Bodies from here on take milliseconds, so bodies.py parses them on a thread, each with a parser of its own: a parser
# has one user at a time, and keeps the memory of its largest document.
THREAD_BYTES = 500_000

MOST_AXES = 32
# What numbers and the space between them consist of. "e" occurs in words, too: those keep other letters.
_NUMBERS = b"0123456789.+-eE \t\r\n"
_TYPES: dict[Literal["i", "u", "d"], Any] = {"i": np.int64, "u": np.uint64, "d": np.float64}

_parser = simdjson.Parser()


def parse_array(body: bytes) -> dict[str, Any] | None:
    """Parse an object one of whose values is nested lists of numbers, and no other value a list or an object.

    That value becomes an array. Returns None for any other text, also where lists of one level differ in length: orjson
    reads those, or says what is wrong.
    """
    # What is left without the numbers, `{"instancs":[[,,],[,,]]}`, shows the shape and whether it is regular.
    skeleton = body.translate(None, _NUMBERS)
    start, end = skeleton.find(b"["), skeleton.rfind(b"]") + 1
    if skeleton[:1] != b"{" or start < 0:
        return None
    shape = _shape(skeleton[start:end])
    if shape is None:
        return None
    try:
        return {
            key: _array(value).reshape(shape) if _is_list(value) else value for key, value in _members(_parse(body))
        }
    except (ValueError, TypeError, RuntimeError):
        return None


def parse_tensors(body: bytes) -> dict[str, Any] | None:
    """Parse a request of the Open Inference Protocol; the `data` of each input, a flat list of numbers, is an array.

    Returns None for any other text, also where data is nested.
    """
    skeleton = body.translate(None, _NUMBERS)
    if skeleton[:1] != b"{" or b"[[" in skeleton or b",[" in skeleton:
        return None
    try:
        return {
            key: [_input(item) for item in value] if key == "inputs" else _plain(value)
            for key, value in _members(_parse(body))
        }
    except (ValueError, TypeError, RuntimeError):
        return None


def _parse(body: bytes) -> Any:
    return (_parser if len(body) < THREAD_BYTES else simdjson.Parser()).parse(body)


def _input(item: Any) -> dict[str, Any]:
    return {key: _array(value) if key == "data" else _plain(value) for key, value in _members(item)}


def _members(mapping: Any) -> list[tuple[str, Any]]:
    """Return the keys of an object with their values. Raises ValueError if a key is given twice."""
    keys = list(mapping.keys()) if isinstance(mapping, simdjson.Object) else None
    if keys is None or len(set(keys)) < len(keys):
        raise ValueError("not an object, or a key twice")
    return [(key, mapping[key]) for key in keys]


def _is_list(value: Any) -> bool:
    if isinstance(value, simdjson.Object):
        raise TypeError("an object")
    return isinstance(value, simdjson.Array)


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Object):
        return value.as_dict()
    return value.as_list() if isinstance(value, simdjson.Array) else value


def _array(numbers: Any) -> np.ndarray:
    """Return a parsed list, of whatever nesting, as a flat array. Raises TypeError if it is not all numbers."""
    for kind, dtype in _TYPES.items():
        try:
            return np.frombuffer(numbers.as_buffer(of_type=kind), dtype)
        except (AttributeError, ValueError, TypeError):
            continue
    raise TypeError("not a list of numbers")


def _shape(skeleton: bytes) -> tuple[int, ...] | None:
    """Return the shape of nested lists of which only brackets and commas are left; None if they are irregular."""
    depth = len(skeleton) - len(skeleton.lstrip(b"["))
    if depth > MOST_AXES:
        return None
    # An axis ends at the first run of brackets that closes it; until there, commas separate the numbers.
    shape: list[int] = []
    before = 1
    for closed in range(1, depth + 1):
        numbers = skeleton.count(b",", 0, skeleton.find(b"]" * closed)) + 1
        shape.insert(0, numbers // before)
        before = numbers
    length = 0
    for size in reversed(shape):
        length = size * length + size + 1  # its elements, the commas between them, two brackets
    return tuple(shape) if shape and len(skeleton) == length and skeleton == _regular(shape) else None


def _regular(shape: list[int]) -> bytes:
    """Return what is left of an array of this shape, as in _shape."""
    text = b""
    for size in reversed(shape):
        text = b"[" + b",".join([text] * size) + b"]"
    return text
