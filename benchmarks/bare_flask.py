"""The limit that the web framework sets: reads the request, computes nothing. Run by Slipway's own gunicorn settings.

gunicorn --config python:bare_flask bare_flask:app
"""

from flask import Flask, Response, request

from model_server.gunicorn_conf import *  # noqa: F403  (gunicorn reads its settings from this module)

app = Flask(__name__)


def post_worker_init(worker: object) -> None:
    """Instead of Slipway's, which loads the models."""


@app.post("/<path:path>")
def answer(path: str) -> Response:
    request.get_data(cache=False)
    return Response(b'{"predictions":[[0.5],[0.5]]}', mimetype="application/json")
