"""Trains a recurrent net that reads handwritten digits row by row and says whether the digit is even.

The data is held out as for models/digits, whose helpers it uses. Run it with the packages of
app/requirements/toolchain.txt.
"""

import importlib.util
from pathlib import Path

import keras
import numpy as np

FOLDER = Path(__file__).parent
SAMPLES = {4: "four.png", 9: "nine.png"}

_spec = importlib.util.spec_from_file_location("digits_train", FOLDER.parent / "digits" / "train.py")
assert _spec and _spec.loader
digits_train = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(digits_train)


def held_out() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and right answers by name; the answer is 1 for an even digit."""
    _, pictures, _, digits = digits_train.split()
    return {"picture": pictures}, {"even": (digits % 2 == 0).astype("float32")[:, None]}


def train() -> keras.Model:
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    pictures, _, digits, _ = digits_train.split()
    pictures = np.concatenate([pictures, *([digits_train.as_sent(p, rng) for p in pictures] for _ in range(5))])
    even = np.tile(digits % 2 == 0, 6).astype("float32")
    picture = keras.Input((8, 8, 1), name="picture")
    rows = keras.layers.Reshape((8, 8))(picture)
    state = keras.layers.GRU(48)(rows)
    answer = keras.layers.Dense(1, activation="sigmoid", name="even")(state)
    model = keras.Model(picture, answer, name="digits_even")
    model.compile(keras.optimizers.Adam(0.004), "binary_crossentropy")
    model.fit(pictures, even, batch_size=64, epochs=20, verbose=0)
    return model


if __name__ == "__main__":
    trained = train()
    # A copy, because the optimizer's state is twice the weights and serving never needs it.
    bare = keras.models.clone_model(trained)
    bare.set_weights(trained.get_weights())
    bare.save(FOLDER / "digits_even.keras")
    questions, answers = held_out()
    right = (trained.predict(questions["picture"], verbose=0) > 0.5) == (answers["even"] > 0.5)
    print(f"digits_even: {right.mean():.4f} of {len(right)} held-out pictures right")
    (FOLDER / "examples").mkdir(exist_ok=True)
    _, pictures, _, digits = digits_train.split()
    for digit, name in SAMPLES.items():
        digits_train.paper(pictures[np.flatnonzero(digits == digit)[0]]).save(FOLDER / "examples" / name, optimize=True)
