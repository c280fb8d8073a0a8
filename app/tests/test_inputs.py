"""Pictures, rows and nested lists become the right tensors, or an error that says what to change."""

from __future__ import annotations

import base64
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import make_manifest
from model_server.inputs import (
    InputError,
    encode_example,
    encode_row,
    encode_rows,
    encode_upload,
    to_tensor,
    zeros,
)
from model_server.manifest import Example, InputSpec, Manifest


def picture_model(color: str = "grayscale", shape: tuple[int, ...] = (-1, 4, 4, 1), **how: Any) -> Manifest:
    return make_manifest([InputSpec("picture", "float32", shape, "x", "image", color=color, **how)])


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(manifest: Manifest, data: bytes) -> np.ndarray:
    return encode_upload(manifest, data)["picture"]


WINE = make_manifest(
    [
        InputSpec("chemistry", "float32", (-1, 2), "a", "columns", columns=("ash", "proline")),
        InputSpec("appearance", "int32", (-1, 1), "b", "columns", columns=("hue",)),
    ]
)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_common_formats_are_scaled_as_the_card_says(kind: str) -> None:
    tensor = pixels(picture_model(scale=1 / 128, offset=-1), encoded(Image.new("L", (9, 5), 128), kind))
    assert tensor.shape == (1, 4, 4, 1)
    assert tensor.dtype == np.float32
    assert tensor == pytest.approx(0.0, abs=0.02)


def test_invert_makes_dark_light() -> None:
    assert pixels(picture_model(invert=True, scale=1 / 255), encoded(Image.new("L", (4, 4), 255))).max() == 0


def test_rgb_keeps_its_channels_and_free_sizes_keep_the_pictures_own() -> None:
    tensor = pixels(picture_model("rgb", (-1, -1, -1, 3)), encoded(Image.new("RGB", (6, 2), (250, 100, 0))))
    assert tensor.shape == (1, 2, 6, 3)
    assert tensor[0, 0, 0].tolist() == [250, 100, 0]


def test_transparency_is_laid_on_white() -> None:
    assert pixels(picture_model(), encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))).min() == 255


def test_sixteen_bits_become_eight() -> None:
    image = Image.fromarray(np.full((4, 4), 128 * 256, np.uint16))
    assert pixels(picture_model(), encoded(image)).max() == 128


def test_exif_orientation_is_followed() -> None:
    image = Image.new("L", (4, 4), 0)
    image.paste(255, (0, 0, 4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    turned = pixels(picture_model(), encoded(image, exif=exif))[0, :, :, 0]
    assert turned[:, :2].max() == 0
    assert turned[:, 2:].min() == 255


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (bomb(10_000, 5_000), "10000 x 5000 pixels"),
        (encoded(Image.new("L", (5_000, 3_000)), "WEBP", lossless=True, method=0), "limit of 12.5 million"),
        (bomb(100, 100), "damaged"),
        (encoded(Image.effect_noise((64, 64), 50))[:400], "damaged"),
    ],
)
def test_files_that_are_not_usable_pictures_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        pixels(picture_model(), data)


def test_a_large_jpeg_is_decoded_small(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a: decoded.append(self.size) or resize(self, *a))
    pixels(picture_model(), encoded(Image.new("RGB", (2048, 1024), "white"), "JPEG"))
    assert max(max(size) for size in decoded) <= 256


def test_a_row_may_have_the_names_of_columns_or_of_inputs() -> None:
    by_column = encode_row(WINE, {"ash": 1, "hue": 3, "proline": 2.5})
    by_input = encode_row(WINE, {"chemistry": [1, 2.5], "hue": 3})
    assert by_column["chemistry"].tolist() == by_input["chemistry"].tolist() == [[1, 2.5]]
    assert by_column["appearance"].tolist() == by_input["appearance"].tolist() == [[3]]
    assert by_column["appearance"].dtype == np.int32


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1, 2, 3], "takes numbers named ash, proline"),
        ({"ash": 1, "prolin": 2, "hue": 3}, "unknown name prolin .perhaps you mean proline"),
        ({"ash": 1, "proline": 2}, "hue missing"),
        ({"ash": 1, "proline": None, "hue": 3}, "null"),
        ({"ash": 1, "proline": "2", "hue": 3}, "takes numbers only"),
        ({"ash": 1, "proline": 2, "hue": 3.0}, "integers only"),
        ({"ash": 1, "proline": 2, "hue": 2**31}, "does not fit int32"),
        ({"chemistry": [1, 2, 3], "hue": 3}, r"shape is \[1, 3\]"),
    ],
)
def test_wrong_rows_are_refused(row: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        encode_row(WINE, row)


def test_rows_of_a_picture_model_take_pixels_and_base64() -> None:
    file = {"b64": base64.b64encode(encoded(Image.new("L", (9, 9), 7))).decode()}
    tensor = encode_rows(picture_model(), [file, [[[1]] * 4] * 4])["picture"]
    assert tensor[0].max() == tensor[0].min() == 7
    assert tensor[1].max() == tensor[1].min() == 1


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("float32", [[1, 2], [3]], "ragged"),
        ("float32", [1, 2], "shape"),
        ("float32", [[True, False]], "numbers only"),
        ("float32", [[1e39, 0]], "does not fit float32"),
        ("int8", [[1, 300]], "does not fit int8"),
        ("bool", [[1, 0]], "true and false"),
        ("string", [[1, 2]], "takes strings"),
        ("string", [["a"], ["b", "c"]], "ragged"),
        ("string", [[{"b64": "§"}, "b"]], "base64"),
    ],
)
def test_wrong_tensors_are_refused(dtype: str, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        to_tensor(InputSpec("x", dtype, (-1, 2), "x", "tensor"), value)


def test_a_float_input_takes_integers_and_infinity() -> None:
    tensor = to_tensor(InputSpec("x", "float32", (-1, 2), "x", "tensor"), [[1, float("inf")]])
    assert tensor.tolist() == [[1.0, float("inf")]]


def test_strings_are_text_or_base64() -> None:
    tensor = to_tensor(InputSpec("x", "string", (-1,), "x", "tensor"), ["é", {"b64": "/w=="}])
    assert tensor.tolist() == ["é".encode(), b"\xff"]


def test_examples_read_their_pictures_from_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/one.png").write_bytes(encoded(Image.new("L", (4, 4), 9)))
    tensors = encode_example(picture_model(), Example("one", "examples/one.png", {}), tmp_path)
    assert tensors["picture"].max() == 9


def test_zeros_have_the_models_shapes_and_dtypes() -> None:
    manifest = make_manifest(
        [InputSpec("n", "int64", (-1, -1, 3), "n", "tensor"), InputSpec("s", "string", (-1,), "s", "tensor")]
    )
    assert zeros(manifest)["n"].shape == (1, 1, 3)
    assert zeros(manifest)["s"].tolist() == [b""]
