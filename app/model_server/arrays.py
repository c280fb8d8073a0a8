"""Parses JSON with one large array of numbers into a NumPy array, several times faster than by way of lists."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import simdjson

# Below this, orjson and NumPy take as long.
ARRAY_BYTES = 500
# The parser keeps the memory for its largest document: so larger ones get one of their own.
KEPT_BYTES = 2_000_000

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
        document: Any = (_parser if len(body) < KEPT_BYTES else simdjson.Parser()).parse(body)
        keys = list(document.keys())
        values = {key: _value(document[key], shape) for key in keys}
    except (ValueError, TypeError, RuntimeError):
        return None
    return values if len(values) == len(keys) else None  # a key given twice


def _value(value: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(value, simdjson.Object):
        raise TypeError("an object")
    if not isinstance(value, simdjson.Array):
        return value
    for kind, dtype in _TYPES.items():
        try:
            return np.frombuffer(value.as_buffer(of_type=kind), dtype).reshape(shape)
        except (ValueError, TypeError):
            continue
    raise TypeError("not all numbers")


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
