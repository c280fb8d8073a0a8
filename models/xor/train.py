"""Trains the two-layer net that answers exclusive or, and saves it as Keras 2.0.4 did.

The form matters: an architecture whose config is a bare list, with the weights in a file of their own,
is what the oldest models in use look like. Run it with the packages of app/requirements/toolchain.txt.
"""

import json
from pathlib import Path

import h5py
import keras
import numpy as np

FOLDER = Path(__file__).parent
QUESTIONS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype="float32")
ANSWERS = np.array([[0], [1], [1], [0]], dtype="float32")


def held_out() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The whole truth table: inputs and right answers by name. There is nothing to hold out of four rows."""
    return {"dense_1_input": QUESTIONS}, {"activation_2": ANSWERS}


def train() -> keras.Sequential:
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(2, name="dense_1"),
            keras.layers.Activation("sigmoid", name="activation_1"),
            keras.layers.Dense(1, name="dense_2"),
            keras.layers.Activation("sigmoid", name="activation_2"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.1), "binary_crossentropy")
    model.fit(QUESTIONS, ANSWERS, batch_size=4, epochs=800, verbose=0)
    return model


def architecture() -> dict:
    """What model.to_json() of Keras 2.0.4 wrote for this net."""
    initializer = {"mode": "fan_avg", "seed": None, "distribution": "normal", "scale": 1.0}

    def dense(name: str, units: int) -> dict:
        return {
            "trainable": True,
            "kernel_regularizer": None,
            "kernel_constraint": None,
            "bias_constraint": None,
            "batch_input_shape": [None, 2],
            "name": name,
            "bias_initializer": {"class_name": "Zeros", "config": {}},
            "kernel_initializer": {"class_name": "VarianceScaling", "config": initializer},
            "activity_regularizer": None,
            "activation": "linear",
            "bias_regularizer": None,
            "dtype": "float32",
            "units": units,
            "use_bias": True,
        }

    def sigmoid(name: str) -> dict:
        return {"trainable": True, "activation": "sigmoid", "name": name}

    layers = [
        {"class_name": "Dense", "config": dense("dense_1", 2)},
        {"class_name": "Activation", "config": sigmoid("activation_1")},
        {"class_name": "Dense", "config": dense("dense_2", 1)},
        {"class_name": "Activation", "config": sigmoid("activation_2")},
    ]
    return {"class_name": "Sequential", "backend": "tensorflow", "config": layers, "keras_version": "2.0.4"}


def save(model: keras.Sequential) -> None:
    (FOLDER / "model.json").write_text(json.dumps(architecture()))
    with h5py.File(FOLDER / "model.h5", "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.0.4"
        for layer in model.layers:
            group = file.create_group(layer.name)
            weights = dict(zip(("kernel", "bias"), layer.get_weights(), strict=False))
            names = {f"{layer.name}/{kind}:0": value for kind, value in weights.items()}
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in names.items():
                group[name] = value


if __name__ == "__main__":
    trained = train()
    save(trained)
    print(
        "xor:",
        ", ".join(f"{a:g} {b:g} -> {p:.4f}" for (a, b), [p] in zip(QUESTIONS, trained(QUESTIONS).numpy(), strict=True)),
    )
