"""Trains a net with two inputs and two outputs on scikit-learn's wines and saves it as a SavedModel folder.

From eleven chemical measurements and two of its appearance it tells a wine's cultivar, and its alcohol,
which is left out of the inputs. A quarter of the data is held out. Run it with the packages of
app/requirements/toolchain.txt.
"""

import shutil
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split

FOLDER = Path(__file__).parent
COLUMNS = [name.replace("od280/od315_of_diluted_wines", "od280_od315") for name in load_wine().feature_names]
APPEARANCE = ["color_intensity", "hue"]
CHEMISTRY = [name for name in COLUMNS if name not in ("alcohol", *APPEARANCE)]


def pick(rows: np.ndarray, names: list[str]) -> np.ndarray:
    return rows[:, [COLUMNS.index(name) for name in names]].astype("float32")


def split() -> list[np.ndarray]:
    """Rows [n, 13] in COLUMNS' order: to train on, held out; then the cultivars 0 … 2 alike."""
    data = load_wine()
    return train_test_split(data.data, data.target, test_size=0.25, random_state=0, stratify=data.target)


def held_out() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and right answers by name; alcohol in percent."""
    _, rows, _, cultivars = split()
    inputs = {"chemistry": pick(rows, CHEMISTRY), "appearance": pick(rows, APPEARANCE)}
    return inputs, {"cultivar": cultivars, "alcohol": pick(rows, ["alcohol"])}


def train() -> keras.Model:
    keras.utils.set_random_seed(1)
    rows, _, cultivars, _ = split()
    inputs, scaled = [], []
    for name, columns in (("chemistry", CHEMISTRY), ("appearance", APPEARANCE)):
        values = pick(rows, columns)
        inputs.append(keras.Input((len(columns),), name=name))
        # Users send what the laboratory measured; the scaling is the model's business.
        scaled.append(keras.layers.Normalization(mean=values.mean(axis=0), variance=values.var(axis=0))(inputs[-1]))
    x = keras.layers.Dense(24, activation="relu")(keras.layers.Concatenate()(scaled))
    x = keras.layers.Dropout(0.2)(x)
    cultivar = keras.layers.Dense(3, activation="softmax", name="cultivar")(x)
    alcohol = keras.layers.Rescaling(1.0, offset=13.0, name="alcohol")(keras.layers.Dense(1)(x))
    model = keras.Model(inputs, {"cultivar": cultivar, "alcohol": alcohol}, name="wine")
    model.compile(
        keras.optimizers.Adam(0.01, weight_decay=0.01),
        {"cultivar": "sparse_categorical_crossentropy", "alcohol": "mse"},
    )
    questions = {"chemistry": pick(rows, CHEMISTRY), "appearance": pick(rows, APPEARANCE)}
    model.fit(
        questions,
        {"cultivar": cultivars, "alcohol": pick(rows, ["alcohol"])},
        batch_size=32,
        epochs=120,
        verbose=0,
    )
    return model


if __name__ == "__main__":
    trained = train()
    shutil.rmtree(FOLDER / "saved_model", ignore_errors=True)
    trained.export(FOLDER / "saved_model", verbose=False)
    (FOLDER / "saved_model" / "fingerprint.pb").unlink()  # a random id
    questions, answers = held_out()
    given = trained.predict(questions, verbose=0)
    right = (given["cultivar"].argmax(axis=1) == answers["cultivar"]).mean()
    error = np.abs(given["alcohol"] - answers["alcohol"]).mean()
    count = len(answers["cultivar"])
    print(f"wine: {right:.4f} of {count} held-out cultivars right, alcohol off by {error:.3f} on average")
