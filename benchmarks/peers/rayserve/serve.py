"""Ray Serve with a replica a core, its settings for throughput, and no batching."""

import os
import signal

os.environ |= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"}

import ray
from ray import serve
from starlette.requests import Request

CPUS = int(os.environ["CPUS"])


@serve.deployment(num_replicas=CPUS, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=32)
class Models:
    def __init__(self) -> None:
        from keras_models import load

        self._models = load()

    async def __call__(self, request: Request) -> dict:
        if request.headers["content-type"].startswith("multipart/"):
            form = await request.form()
            answer = self._models[form["model"]].picture(await form["file"].read())
        else:
            asked = await request.json()
            answer = self._models[asked["model"]](asked["instances"])
        return {"predictions": answer.tolist()}


if __name__ == "__main__":
    ray.init(num_cpus=CPUS, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Models.bind())
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    ray.shutdown()
