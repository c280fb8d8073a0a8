"""Turns what a client sends into the tensors that an engine takes.

The encode_ functions return an array for each input, of the manifest's dtype, and raise InputError with a message for
the client.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .engines import Tensors
from .manifest import Example, InputSpec, Manifest, TensorSpec, replace_files, takes_image

# A picture below this is decoded in 1 to 2 ms.
INLINE_PIXELS = 100_000
LARGE_PIXELS = 2_000_000
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")


class InputError(ValueError):
    """The request cannot be answered; the message says what to change."""


@dataclass(frozen=True)
class Limits:
    """The most pixels of a picture, and how larger ones are decoded.

    `run` calls the decoder for a picture of more than INLINE_PIXELS, or for one of several; `lock` is held while one of
    LARGE_PIXELS or more is decoded.
    """

    pixels: int = 25_000_000
    lock: AbstractContextManager[object] = field(default_factory=nullcontext)
    run: Callable[..., Any] = lambda function, *args: function(*args)


def encode_upload(manifest: Manifest, data: bytes, limits: Limits = Limits()) -> Tensors:
    """Decode a picture file, in memory, into a batch of one.

    The picture is turned as its EXIF orientation says, laid on white if it is transparent and stretched to the model's
    height and width; each pixel, 0 … 255, becomes pixel * scale + offset. A picture of more than `limits.pixels` pixels
    (WebP: half of that) is refused before it is decoded.
    """
    if not takes_image(manifest):
        raise InputError(f"the model {manifest.name} does not take a picture; it takes {_wanted(manifest)}")
    return encode_rows(manifest, [data], limits)


def encode_row(manifest: Manifest, row: Any, limits: Limits = Limits()) -> Tensors:
    """Turn one row into a batch of one.

    A row is the bare value (a number or nested lists, without the batch axis) if the model has a single input, or an
    object whose keys are input names, column names, or both. A picture is its pixels as the model takes them (scaled),
    or a picture file, as bytes or as `{"b64": "…"}`.
    """
    return encode_rows(manifest, [row], limits)


def encode_rows(manifest: Manifest, rows: Any, limits: Limits = Limits()) -> Tensors:
    """Turn a list or an array of at least one row, each as in encode_row, into one batch."""
    if not isinstance(rows, list | np.ndarray) or not len(rows):
        raise InputError("the rows must be a list that is not empty")
    if len(manifest.inputs) == 1 and isinstance(rows, np.ndarray):
        return {manifest.inputs[0].name: to_tensor(manifest.inputs[0], rows)}
    if len(manifest.inputs) == 1 and not any(isinstance(row, dict) and not _is_base64(row) for row in rows):
        columns = {manifest.inputs[0].name: rows}
    else:
        named = [_by_input(manifest, row, f"row {number}: ") for number, row in enumerate(rows, 1)]
        columns = {spec.name: [row[spec.name] for row in named] for spec in manifest.inputs}
    tensors = {}
    for spec in manifest.inputs:
        values = columns[spec.name]
        if spec.kind == "image":
            values = [_pixels(spec, value, limits, alone=len(values) == 1) for value in values]
        tensors[spec.name] = to_tensor(spec, values)
    return tensors


def encode_example(manifest: Manifest, example: Example, folder: Path) -> Tensors:
    """Turn an example into a batch of one; its pictures are read from `folder`, the compiled model's."""
    row = replace_files(example.input, manifest.pictures, lambda name: (folder / name).read_bytes())
    return encode_row(manifest, row)


def zeros(manifest: Manifest) -> Tensors:
    """Return a batch of one to ask a model without examples: zeros or empty strings."""
    return {
        spec.name: np.full((1, *spec.row_shape), b"", object)
        if spec.dtype == "string"
        else np.zeros((1, *spec.row_shape), spec.dtype)
        for spec in manifest.inputs
    }


def to_tensor(spec: InputSpec, value: Any) -> np.ndarray:
    """Turn nested lists or an array, the batch axis first, into an array of the input's dtype and shape.

    Raises InputError. Refused are ragged lists, wrong shapes, strings and booleans for numbers, and numbers with a
    decimal point (also 1.0) for integers. Strings are text or `{"b64": "…"}` and become an object array of bytes.
    """
    text = spec.dtype == "string"
    try:
        value = _encoded(spec, value) if text else value
    except RecursionError:
        raise _ragged(spec) from None
    try:
        tensor = np.asarray(value, dtype=object if text else None)
    except (ValueError, OverflowError):
        raise _ragged(spec) from None
    _check_values(spec, tensor)
    if not fits(tensor.shape, spec.shape):
        shape = list(tensor.shape)
        raise InputError(f"input {spec.name}: the shape is {shape}, the model takes {shape_text(spec)}")
    if text:
        return tensor
    with np.errstate(over="ignore"):
        cast = tensor.astype(spec.dtype)
    if cast.dtype.kind == "f" and not np.isfinite(cast).all() and np.isinf(cast).sum() != np.isinf(tensor).sum():
        raise InputError(f"input {spec.name}: a number does not fit {spec.dtype}")
    return cast


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether a tensor of `shape` is one that the model takes."""
    return len(shape) == len(wanted) and all(
        size == want or (want < 0 and size > 0) for size, want in zip(shape, wanted, strict=True)
    )


def shape_text(spec: TensorSpec) -> str:
    """Return the shape for people: `[batch, 8, 8, 1]`, with `any` for other free sizes."""
    sizes = ["any" if size < 0 else str(size) for size in spec.shape]
    return f"[{', '.join(['batch', *sizes[1:]] if spec.shape[:1] == (-1,) else sizes)}]"


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint at the known name that `name` resembles, or an empty text."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (perhaps you mean {close[0]})" if close else ""


def from_base64(text: Any) -> bytes:
    """Decode the text of a `{"b64": "…"}`. Raises InputError."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InputError("b64: not base64 text") from None


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _by_input(manifest: Manifest, row: Any, where: str) -> dict[str, Any]:
    """Return the row's value for each input."""
    if not isinstance(row, dict) or (_is_base64(row) and len(manifest.inputs) == 1):
        if len(manifest.inputs) == 1:
            return {manifest.inputs[0].name: row}
        raise InputError(f"{where}the model {manifest.name} takes {_wanted(manifest)}")
    values, known = {}, []
    for spec in manifest.inputs:
        # A column may have its input's name: then a list is the whole input and a number is the column.
        if spec.name in row and (spec.name not in spec.columns or isinstance(row[spec.name], list)):
            known.append(spec.name)
            values[spec.name] = row[spec.name]
        else:
            names = spec.columns or (spec.name,)
            known.extend(names)
            values[spec.name] = [row.get(name) for name in names]
    unknown, missing = [key for key in row if key not in known], [name for name in known if name not in row]
    if unknown:
        hint = nearest(unknown[0], missing or known)
        raise InputError(f"{where}unknown name {unknown[0]}{hint}; the model takes {_wanted(manifest)}")
    if missing:
        raise InputError(f"{where}{', '.join(missing)} missing; the model takes {_wanted(manifest)}")
    return values


def _wanted(manifest: Manifest) -> str:
    """Return what a row of this model is, for an error message."""
    wanted = []
    for spec in manifest.inputs:
        if spec.kind == "columns":
            wanted.append(f"numbers named {', '.join(spec.columns)}")
        else:
            shape = shape_text(spec).replace("[batch, ", "[").replace("[batch]", "a single value")
            wanted.append(f"{'a picture, or ' if spec.kind == 'image' else ''}{spec.dtype} {shape} as {spec.name}")
    return "; ".join(wanted)


def _encoded(spec: InputSpec, value: Any) -> Any:
    """Turn nested lists of strings into nested lists of bytes."""
    if isinstance(value, list):
        return [_encoded(spec, item) for item in value]
    if isinstance(value, str):
        return value.encode()
    if _is_base64(value):
        return from_base64(value["b64"])
    raise InputError(f'input {spec.name}: takes strings, as text or as {{"b64": "…"}}')


def _check_values(spec: InputSpec, tensor: np.ndarray) -> None:
    if spec.dtype == "string":
        if not all(isinstance(item, bytes) for item in tensor.flat):
            raise _ragged(spec)
        return
    wanted = np.dtype(spec.dtype)
    if wanted.kind == "b" and tensor.dtype.kind != "b":
        raise InputError(f"input {spec.name}: takes true and false only")
    if wanted.kind in "iu":
        if tensor.dtype.kind not in "iu":
            raise InputError(f"input {spec.name}: takes integers only, without a decimal point ({spec.dtype})")
        limits = np.iinfo(wanted)
        if tensor.size and (tensor.min() < limits.min or tensor.max() > limits.max):
            raise InputError(f"input {spec.name}: a number does not fit {spec.dtype} ({limits.min} … {limits.max})")
    if wanted.kind == "f" and tensor.dtype.kind not in "fiu":
        raise InputError(f"input {spec.name}: takes numbers only; not null, text, true or false")


def _ragged(spec: InputSpec) -> InputError:
    return InputError(f"input {spec.name}: ragged; all lists of one level must have the same length")


def _pixels(spec: InputSpec, value: Any, limits: Limits, alone: bool) -> Any:
    """Return a picture file's tensor, without the batch axis. Return anything else, pixels as numbers, as it is."""
    if _is_base64(value):
        value = from_base64(value["b64"])
    if not isinstance(value, bytes):
        return value
    pixels = _decode(spec, value, limits, alone)
    return (255 - pixels if spec.invert else pixels) * np.float32(spec.scale) + np.float32(spec.offset)


def _decode(spec: InputSpec, data: bytes, limits: Limits, alone: bool) -> np.ndarray:
    """Return pixels, 0 … 255, as float32 in the shape of `spec` without its batch axis."""
    if not data:
        raise InputError("the file is empty; send a picture")
    # Hostile bytes make decoders raise nearly anything: OSError, SyntaxError, struct.error, zlib.error …
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Exception as error:
        raise InputError(f"not a picture that can be read; send one of {', '.join(IMAGE_FORMATS)}") from error
    pixels = image.width * image.height
    # Decoding WebP takes twice the memory of the other formats.
    limit = limits.pixels // 2 if image.format == "WEBP" else limits.pixels
    if pixels > limit:
        raise InputError(
            f"the picture has {image.width} x {image.height} pixels, more than the limit of "
            f"{limit / 1e6:g} million; send it smaller"
        )
    try:
        if alone and pixels <= INLINE_PIXELS:
            return _resized(spec, image)
        decoded: np.ndarray = limits.run(_resized_alone, spec, image, limits)
        return decoded
    except Exception as error:
        raise InputError("the picture is damaged; save it again and send that") from error


def _resized_alone(spec: InputSpec, image: Image.Image, limits: Limits) -> np.ndarray:
    with limits.lock if image.width * image.height >= LARGE_PIXELS else nullcontext():
        return _resized(spec, image)


def _resized(spec: InputSpec, image: Image.Image) -> np.ndarray:
    height, width = spec.shape[1:3]
    if height > 0 and width > 0:  # a JPEG is then decoded at a smaller size, in less memory
        image.draft(None, (2 * max(height, width), 2 * max(height, width)))
    ImageOps.exif_transpose(image, in_place=True)
    size = (width if width > 0 else image.width, height if height > 0 else image.height)
    if image.mode in ("1", "P", "PA") or (image.has_transparency_data and image.mode != "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    # All other conversions come after the resizing: each copies the picture, which is small by now.
    image = image.resize(size, Image.Resampling.BILINEAR)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", size, "white"), image)
    image = image.convert("RGB" if spec.color == "rgb" else "L")
    return np.asarray(image, np.float32).reshape([*size[::-1], *spec.shape[3:]])
