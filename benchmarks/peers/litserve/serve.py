"""LitServe with a worker a core and its queue for throughput (ZeroMQ), without batching: on a CPU, a batch of two costs
what two calls cost.
"""

import os

import litserve

from keras_models import load


class Models(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.models = load()

    def decode_request(self, request):
        if "file" in request:
            return request["model"], request["file"].file.read(), None
        return request["model"], None, request["instances"]

    def predict(self, asked):
        name, picture, rows = asked
        model = self.models[name]
        return model(rows) if picture is None else model.picture(picture)

    def encode_response(self, output):
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    litserve.LitServer(
        Models(), accelerator="cpu", workers_per_device=int(os.environ["CPUS"]), fast_queue=True, timeout=60
    ).run(host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning", generate_client_file=False)
