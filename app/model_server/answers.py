"""Turns an engine's output tensors into answers that people read, and checks them against what an example expects."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from .engines import Tensors
from .manifest import Example, Manifest, OutputSpec

# Of a longer answer this many numbers are recorded, evenly spread. The manifest stays small, and an engine that answers
# a mask wrongly is wrong in more places than a few.
RECORDED = 1024
# The least difference that a recorded answer allows: by so much engines differ from each other.
RECORDED_TOLERANCE = 1e-4


def decode(manifest: Manifest, outputs: Tensors, row: int = 0) -> dict[str, dict[str, Any]]:
    """Return the answer to one row of the batch, by output name.

    `values` is the output without the batch axis: a NumPy array or scalar, or nested lists if it holds text. A
    "classes" or "binary" output also has `index`, `label` (the index as text if the card has no labels), and
    `probability`, the label's score, if that lies within 0 … 1. If a score is not finite, index and label are None.
    Where each step has scores of its own, these are lists of one for each step. An "image" output has only `image`, a
    PNG as `{"b64": "…"}`, or None if a number is not finite.
    """
    return {spec.name: _decode(spec, outputs[spec.name][row, ...]) for spec in manifest.outputs}


def verdict(manifest: Manifest, outputs: Tensors) -> Any:
    """Return the first output's answer to the first row, in short: the class's index (binary: 0 or 1) or numbers."""
    spec, values = manifest.outputs[0], outputs[manifest.outputs[0].name][0, ...]
    return values if spec.kind == "image" else _decode(spec, values).get("index", _values(values))


def check_expected(manifest: Manifest, outputs: Tensors, example: Example) -> str | None:
    """Compare a batch of one with what the example expects; return None if it is right, else the reason.

    A text is compared with the label; an integer with the index of a "classes" or "binary" output; a list of these with
    those of each step; other numbers and lists with the values, each within the example's tolerance, as a recorded
    answer is.
    """
    known = {spec.name: spec for spec in manifest.outputs}
    for name, expected in example.expect.items():
        if name not in known:
            return f"example {example.name} expects an output {name}; the model has {', '.join(known)}"
        values = outputs[name][0, ...]
        if isinstance(expected, dict):
            if reason := _mismatch_recorded(values, expected, example.tolerance):
                return f"example {example.name}: {name} is not the recorded answer: {reason}"
        elif reason := _mismatch(known[name], values, expected, example.tolerance):
            return f"example {example.name}: {name} should be {_short(expected)}, {reason}"
    return None


def record(manifest: Manifest, outputs: Tensors) -> dict[str, Any]:
    """Return the answer, a batch of one, as an example's `expect`: each output's shape and at most RECORDED values.

    Floats have six digits: more than enough to compare, and the same on processors that differ in the last bits.
    """
    return {spec.name: _recorded(outputs[spec.name][0, ...]) for spec in manifest.outputs}


def all_finite(outputs: Tensors) -> bool:
    """Return whether strict JSON can write every number: none is NaN or infinite."""
    return all(bool(np.isfinite(array).all()) for array in outputs.values() if array.dtype.kind == "f")


def _decode(spec: OutputSpec, values: np.ndarray) -> dict[str, Any]:
    if spec.kind == "image":
        return {"image": _png(spec, values)}
    answer: dict[str, Any] = {"values": _values(values)}
    if spec.kind == "numbers" or not values.size:
        return answer
    if values.ndim > 1:
        return _decode_steps(spec, values)
    scores = np.ravel(values)
    if not np.isfinite(scores).all():
        return {"index": None, "label": None} | answer
    if spec.kind == "binary":
        index = int(scores[0] > spec.threshold)
        score = scores[0] if index else 1 - scores[0]
    else:
        index = int(scores.argmax())
        score = scores[index]
    answer = {"index": index, "label": spec.labels[index] if spec.labels else str(index)} | answer
    return answer | ({"probability": score} if 0 <= score <= 1 else {})


def _decode_steps(spec: OutputSpec, values: np.ndarray) -> dict[str, Any]:
    if spec.kind == "binary":
        count, index = 2, (values[..., 0] > spec.threshold).astype(int)
        score = np.where(index, values[..., 0], 1 - values[..., 0])
    else:
        count, index, score = values.shape[-1], values.argmax(-1), values.max(-1)
    finite = np.isfinite(values).all(-1)
    index = np.where(finite, index, -1)  # the last of the names
    indices = np.array([*range(count), None], dtype=object)
    labels = np.array([*(spec.labels or map(str, range(count))), None], dtype=object)
    answer = {"index": indices.take(index).tolist(), "label": labels.take(index).tolist(), "values": values}
    likely = ((score >= 0) & (score <= 1))[finite].all()
    return answer | ({"probability": np.where(finite, score, np.nan)} if likely else {})


def _png(spec: OutputSpec, values: np.ndarray) -> dict[str, str] | None:
    if not np.isfinite(values).all():
        return None
    pixels = ((values.astype(np.float32) - spec.offset) / spec.scale).round().clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels).save(file, "PNG", compress_level=1)
    return {"b64": base64.b64encode(file.getvalue()).decode()}


def _values(values: np.ndarray) -> Any:
    return _text(values) if values.dtype.kind in "OSU" else values


def _text(values: np.ndarray) -> Any:
    """Return text as JSON has it; bytes that are not UTF-8 become replacement characters."""
    decoded = [item.decode(errors="replace") if isinstance(item, bytes) else str(item) for item in np.ravel(values)]
    return np.array(decoded, dtype=object).reshape(values.shape).tolist()


def _recorded(values: np.ndarray) -> dict[str, Any]:
    picked = _spread(values).tolist()
    if values.dtype.kind == "f":
        picked = [float(f"{value:.6g}") for value in picked]
    return {"shape": list(values.shape), "values": picked}


def _spread(values: np.ndarray) -> np.ndarray:
    """Return at most RECORDED of the values, evenly spread over all of them."""
    flat: np.ndarray = np.ravel(_values(values))
    return flat.take(np.linspace(0, flat.size - 1, min(flat.size, RECORDED)).round().astype(int))


def _mismatch_recorded(values: np.ndarray, recorded: dict[str, Any], tolerance: float) -> str | None:
    if list(values.shape) != recorded["shape"]:
        return f"the shape is {list(values.shape)} instead of {recorded['shape']}"
    found, wanted = _spread(values), recorded["values"]
    if values.dtype.kind != "f":
        wrong = [f"{one} instead of {other}" for one, other in zip(found.tolist(), wanted, strict=True) if one != other]
        return _short(wrong[0]) if wrong else None
    difference = np.abs(found.astype(float) - wanted)
    allowed = max(RECORDED_TOLERANCE, tolerance * float(np.abs(wanted).max(initial=0.0)))
    if (difference <= allowed).all():
        return None
    worst = int(difference.argmax())  # a NaN, if there is one
    return f"{found[worst]:.6g} instead of {wanted[worst]:.6g} (off by {difference[worst]:.3g}, allowed {allowed:.3g})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:199] + "…"


def _mismatch(spec: OutputSpec, values: np.ndarray, expected: Any, tolerance: float) -> str | None:
    if spec.kind in ("binary", "classes") and (key := _compared(values, expected)):
        answer = _decode(spec, values)
        return _mismatch_label(answer[key], expected, answer.get("probability"))
    if values.dtype.kind in "OSU":
        given = _text(values)
        return None if np.array_equal(np.ravel(given), np.ravel(expected)) else f"but is {_short(given)}"
    try:
        wanted = np.asarray(expected, dtype=float)
    except (TypeError, ValueError):
        return "but the model answers numbers"
    if wanted.size != values.size:
        return f"but has {values.size} numbers instead of {wanted.size}"
    found = np.ravel(values).astype(float)
    difference = np.abs(found - wanted.ravel())
    difference[np.isnan(found) & np.isnan(wanted.ravel())] = 0
    worst = float(difference.max(initial=0.0)) if not np.isnan(difference).any() else math.nan
    return None if worst <= tolerance else f"but is {_short(values)} (off by {worst:.3g}, allowed {tolerance:g})"


def _compared(values: np.ndarray, expected: Any) -> str | None:
    """Return what `expected` is compared with: label, index or, if None, the values."""
    try:
        wanted = np.asarray(expected)
    except ValueError:  # ragged
        return None
    if wanted.dtype.kind == "U":
        return "label"
    return "index" if wanted.dtype.kind in "biu" and wanted.shape == values.shape[:-1] else None


def _mismatch_label(given: Any, expected: Any, probability: Any) -> str | None:
    if given == expected:
        return None
    if not isinstance(given, list):
        return f"but is {given}" + (f" (probability {probability:.3g})" if probability is not None else "")
    found, wanted = np.array(given, dtype=object), np.array(expected, dtype=object)
    if found.shape != wanted.shape:
        return f"but the answer has the shape {list(found.shape)} instead of {list(wanted.shape)}"
    places = np.argwhere(found != wanted)
    first = tuple(places[0])
    where = ", ".join(str(index + 1) for index in first)
    return f"but is {found[first]} instead of {wanted[first]} at step {where} ({len(places)} of {found.size} differ)"
