"""Reads request bodies and writes JSON answers, for all routes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
import orjson
from flask import Request, Response
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from .arrays import ARRAY_BYTES, THREAD_BYTES, parse_array
from .inputs import InputError
from .threads import Threads, give_way

# How much of a body is read at once.
SLICE = 65536

ParseLarge = Callable[[bytes], dict[str, Any] | None]

_threads = Threads(1)


class MemoryRequest(Request):
    """A request whose uploads stay in memory, whatever their size: clients' pictures are never written to a disk."""

    def _get_file_stream(self, *args: Any, **kwargs: Any) -> IO[bytes]:
        return io.BytesIO()


def read_json(request: Request) -> dict[str, Any]:
    """Return the body as a JSON object, as parse_json does, whatever its content type."""
    return parse_json(read_body(request))


def parse_json(body: bytes, parse_large: ParseLarge = parse_array) -> dict[str, Any]:
    """Parse a JSON object. Raises InputError.

    NaN, Infinity and -Infinity are read as numbers. In a body of ARRAY_BYTES or more, what `parse_large` takes for
    lists of numbers comes as an array of int64, uint64 or float64.
    """
    if not body:
        raise InputError("the body is empty; send a JSON object")
    if len(body) >= THREAD_BYTES:
        return _threads.run(_parse, body, parse_large)
    return _parse(body, parse_large)


def _parse(body: bytes, parse_large: ParseLarge) -> dict[str, Any]:
    if len(body) >= ARRAY_BYTES and (parsed := parse_large(body)) is not None:
        return parsed
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        data = _read_tokens(body, error)
    if not isinstance(data, dict):
        raise InputError(f"the body is JSON, but {_kind(data)} instead of an object")
    return data


def read_upload(request: Request) -> bytes:
    """Return the picture file in the form field `file` or `image`, or the body if its content type is image/….

    Raises InputError.
    """
    if request.mimetype.startswith("image/"):
        return read_body(request)
    if (request.content_length or 0) > SLICE:
        request.environ["wsgi.input"] = io.BytesIO(read_body(request))
    upload: FileStorage | None = request.files.get("file") or request.files.get("image")
    if upload is None:
        known = [*request.files, *request.form]
        found = f"; the form has {', '.join(known[:5])}" if known else ""
        raise InputError(f"no picture in the form; send it as a file in the field file or image{found}")
    return upload.stream.read()


def is_upload(request: Request) -> bool:
    """Return whether the request carries a file instead of JSON."""
    return request.mimetype == "multipart/form-data" or request.mimetype.startswith("image/")


def json_response(payload: Any, status: int = 200, tokens: bool = False) -> Response:
    """Build a JSON answer. Floats, also in arrays, have their shortest digits and a decimal point or an exponent.

    A number that is not finite becomes null or, with `tokens`, NaN, Infinity or -Infinity, which strict JSON lacks.
    """
    if tokens:
        body = json.dumps(payload, default=_plain).encode()
    else:
        body = orjson.dumps(payload, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status=status, mimetype="application/json")


def read_body(request: Request) -> bytes:
    """Return the body. Raises RequestEntityTooLarge, and ClientDisconnected if it ends early."""
    limit, length = request.max_content_length, request.content_length
    if length is None:  # chunked
        body: bytes = request.get_data(cache=False)
        # Werkzeug silently cuts off a body of unknown length at the limit.
        if limit is not None and len(body) >= limit:
            raise RequestEntityTooLarge
        return body
    if limit is not None and length > limit:
        raise RequestEntityTooLarge
    # Werkzeug's stream would check the same, in ten times the time.
    stream = request.environ["wsgi.input"]
    # gunicorn takes milliseconds for a megabyte.
    body = stream.read(length) if length <= SLICE else b"".join(_slices(stream, length))
    if len(body) < length:
        raise ClientDisconnected
    return body


def _slices(stream: IO[bytes], length: int) -> Iterator[bytes]:
    """Read `length` bytes, or less if the stream ends, with a turn for other requests between slices."""
    while length and (part := stream.read(min(length, SLICE))):
        yield part
        length -= len(part)
        give_way()


def _plain(value: Any) -> Any:
    """Return NumPy's arrays and scalars as Python's, floats with the shortest digits of their own precision."""
    if isinstance(value, np.ndarray | np.generic):
        return (value.astype("U32").astype(float) if value.dtype.kind == "f" else value).tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _read_tokens(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """Parse a body that orjson refused, because orjson refuses NaN and Infinity."""
    try:
        text = body.decode()
    except UnicodeDecodeError as wrong:
        wrong_byte = f"byte {wrong.start} is {body[wrong.start]:#04x}"
        raise InputError(f"the body is not UTF-8 text: {wrong_byte}") from None
    if "NaN" in text or "Infinity" in text:
        try:
            data = json.loads(text)
            if "\\u" in text:
                json.dumps(data, ensure_ascii=False).encode()  # refuses half a surrogate pair, as orjson does
            return data
        except (ValueError, RecursionError):
            pass
    where = f"line {error.lineno}, column {error.colno}"
    raise InputError(f"the body is not JSON: {error.msg} ({where})") from None


def _kind(data: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(data), "a number")
