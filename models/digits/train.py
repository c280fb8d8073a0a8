"""Trains a small convolutional net on scikit-learn's handwritten digits and saves it as digits.h5.

A fifth of the data is held out and never trained on. What is trained on are pictures as users send them:
drawn large, moved a little, and made 8 x 8 again. Run it with the packages of app/requirements/toolchain.txt.
"""

from pathlib import Path

import keras
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FOLDER = Path(__file__).parent
SAMPLES = {3: "three.png", 7: "seven.png", 8: "eight.png"}


def split() -> list[np.ndarray]:
    """Pictures [n, 8, 8, 1] with ink 0 … 1: to train on, held out; then their digits alike."""
    data = load_digits()
    pictures = (data.images / 16).astype("float32")[..., None]
    return train_test_split(pictures, data.target, test_size=0.2, random_state=0, stratify=data.target)


def held_out() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and right answers by name."""
    _, pictures, _, digits = split()
    return {"picture": pictures}, {"digit": digits}


def paper(picture: np.ndarray, size: int = 64) -> Image.Image:
    """A picture [8, 8, 1] as dark ink on white paper, `size` pixels wide."""
    pixels = np.rint(255 * (1 - picture[..., 0])).astype("uint8")
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def as_sent(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture after a user's drawing, a shift of up to one pixel and the server's resizing."""
    dx, dy = rng.integers(-8, 9, 2)
    large = paper(picture).transform((64, 64), Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy), fillcolor=255)
    small = np.asarray(large.resize((8, 8), Image.Resampling.BILINEAR), "float32")
    return (1 - small / 255)[..., None]


def train() -> keras.Model:
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    pictures, _, digits, _ = split()
    pictures = np.concatenate([pictures, *([as_sent(p, rng) for p in pictures] for _ in range(5))])
    digits = np.tile(digits, 6)
    picture = keras.Input((8, 8, 1), name="picture")
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(picture)
    x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dropout(0.4)(x)
    digit = keras.layers.Dense(10, activation="softmax", name="digit")(x)
    model = keras.Model(picture, digit, name="digits")
    model.compile(keras.optimizers.Adam(0.002), "sparse_categorical_crossentropy")
    model.fit(pictures, digits, batch_size=64, epochs=12, verbose=0)
    return model


if __name__ == "__main__":
    trained = train()
    trained.save(FOLDER / "digits.h5", include_optimizer=False)
    _, pictures, _, digits = split()
    answers = trained.predict(pictures, verbose=0).argmax(axis=1)
    print(f"digits: {(answers == digits).mean():.4f} of {len(digits)} held-out pictures right")
    (FOLDER / "examples").mkdir(exist_ok=True)
    for digit, name in SAMPLES.items():
        paper(pictures[np.flatnonzero(digits == digit)[0]]).save(FOLDER / "examples" / name, optimize=True)
