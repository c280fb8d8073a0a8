"""BentoML with a worker a core, without adaptive batching."""

import os

import bentoml
import numpy as np
from PIL.Image import Image

from keras_models import load


@bentoml.service(workers=int(os.environ["CPUS"]), traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Models:
    def __init__(self) -> None:
        self._models = load()

    @bentoml.api(route="/rows")
    def rows(self, model: str, instances: np.ndarray) -> np.ndarray:
        return self._models[model](instances)

    @bentoml.api(route="/picture")
    def picture(self, model: str, file: Image) -> np.ndarray:
        return self._models[model].image(file)
