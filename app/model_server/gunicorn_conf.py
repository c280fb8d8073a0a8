"""gunicorn --config python:model_server.gunicorn_conf "model_server.app:create_app()"."""

from __future__ import annotations

import ctypes
import gc
import logging
import warnings
from typing import Any

from model_server.settings import Settings

_settings = Settings.from_environ()

bind = f"0.0.0.0:{_settings.port}"
workers = _settings.workers
worker_class = "model_server.worker.Worker"
logger_class = "model_server.worker.AccessLog"
accesslog = "-"

# Modules are imported once and shared by the workers; engines are loaded after the fork.
preload_app = True

# Longer than nginx keeps an idle connection to us: a side that closes while the other sends loses a request.
keepalive = 75
graceful_timeout = 25
timeout = 120

# The root file system is read-only.
worker_tmp_dir = "/dev/shm"
control_socket_disable = True

limit_request_line = 8190


# Blocks of a megabyte and more go back to the system when they are freed; by default glibc learns from the first
# large picture to keep them (M_MMAP_THRESHOLD is -3).
ctypes.CDLL(None).mallopt(-3, 2**20)

# Decoders talk about every damaged picture; what counts is in the answer to the client.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def when_ready(server: Any) -> None:
    logging.getLogger("model_server").handlers = server.log.error_log.handlers
    gc.freeze()  # a collection in a worker would otherwise touch, and so copy, the pages that it shares


def post_worker_init(worker: Any) -> None:
    for name, reason in worker.app.callable.catalogue.check().items():
        worker.log.error("%s is not ready: %s", name, reason)
