"""What the peers share: the same Keras files, run by TensorFlow in the way that is fastest there, and the pictures.

A model is called as a concrete function for a free number of rows, on one thread: servers have a worker per core.
"""

import io
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

FOLDER = Path(os.environ["BENCHMARK_MODELS"])
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/*.keras"))
NUMBERS_OF_A_PICTURE = {"cnn": (1 / 255, 0.0), "mobilenet": (1 / 127.5, -1.0)}

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


class Model:
    """One Keras file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._model = keras.saving.load_model(FOLDER / name / f"{name}.keras", compile=False)
        spec = tf.TensorSpec([None, *self._model.input_shape[1:]], tf.float32)
        self._call = tf.function(lambda x: self._model(x, training=False)).get_concrete_function(spec)
        self(np.zeros([1, *self._model.input_shape[1:]]))

    def __call__(self, rows: object) -> np.ndarray:
        """Answer rows, nested lists or an array of shape [batch, …]."""
        return self._call(tf.constant(np.asarray(rows, "float32"))).numpy()

    def picture(self, file: bytes) -> np.ndarray:
        """Answer a picture file; the answer has a batch of one."""
        return self.image(Image.open(io.BytesIO(file)))

    def image(self, image: Image.Image) -> np.ndarray:
        resized = image.convert("RGB").resize(self._model.input_shape[1:3])
        scale, offset = NUMBERS_OF_A_PICTURE[self.name]
        return self((np.asarray(resized, "float32") * np.float32(scale) + np.float32(offset))[np.newaxis])


def load() -> dict[str, Model]:
    return {name: Model(name) for name in NAMES}
