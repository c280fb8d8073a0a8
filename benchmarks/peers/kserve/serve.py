"""KServe's Python server with custom models and a worker a core; predict runs on the loop, without a hop to a thread.

Workers are spawned with pickled models, so a model loads its Keras file where it is unpickled.
"""

import base64
import os
from concurrent.futures import ThreadPoolExecutor

import kserve
from kserve.utils.utils import get_predict_response

# One thread loads all models, as a worker that does not answer its parent within 5 s is killed.
LOADER = ThreadPoolExecutor(1)


class Keras(kserve.Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True
        self._loading = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_loading": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.load()

    def load(self) -> bool:
        self._loading = LOADER.submit(_load, self.name)
        return True

    def predict(self, payload, headers=None, response_headers=None):
        model = self._loading.result()
        if isinstance(payload, kserve.InferRequest):
            return get_predict_response(payload, model(payload.inputs[0].as_numpy()), self.name)
        rows = payload["instances"]
        answer = model.picture(base64.b64decode(rows[0]["b64"])) if isinstance(rows[0], dict) else model(rows)
        return {"predictions": answer.tolist()}


def _load(name: str):
    from keras_models import Model

    return Model(name)


if __name__ == "__main__":
    workers = int(os.environ["CPUS"])
    models = [Keras(name) for name in ("cnn", "lstm", "mobilenet", "xor")]
    if workers == 1:
        for model in models:
            model.load()
    kserve.ModelServer(
        http_port=int(os.environ["PORT"]), workers=workers, enable_grpc=False, enable_latency_logging=False
    ).start(models)
