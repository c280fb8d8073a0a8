"""gunicorn's configuration: gunicorn --config python:model_server.gunicorn_conf "model_server.app:create_app()"."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import shutil
import tempfile
import warnings
from typing import Any

# In memory; prometheus_client looks for it when it is imported.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="metrics-", dir="/dev/shm")

from prometheus_client import multiprocess

from model_server.settings import Settings
from model_server.worker import Shares

_settings = Settings.from_environ()
_shares = Shares(_settings.workers)

bind = f"0.0.0.0:{_settings.port}"
workers = _settings.workers
worker_class = "model_server.worker.Worker"
logger_class = "model_server.worker.RequestLog"
accesslog = "-" if _settings.request_log else None

# Modules are imported once and shared by the workers; engines are loaded after the fork, by post_worker_init below.
preload_app = True

# Longer than nginx keeps an idle connection to us: closing one just as nginx sends a request would lose that request.
keepalive = 75
graceful_timeout = 25
timeout = 120

# The root file system is read-only.
worker_tmp_dir = "/dev/shm"
control_socket_disable = True

limit_request_line = 8190


# Makes glibc return blocks of a megabyte and more to the system when they are freed; by default, it starts to keep them
# after the first large picture. -3 is M_MMAP_THRESHOLD.
ctypes.CDLL(None).mallopt(-3, 2**20)

# Pillow logs every damaged picture; the answer to the client says it already.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def when_ready(server: Any) -> None:
    logging.getLogger("model_server").handlers = server.log.error_log.handlers
    gc.freeze()  # else a collection in a worker writes to, and so copies, the memory that the workers share


def pre_fork(server: Any, worker: Any) -> None:
    worker.shares = _shares
    worker.slot = _shares.take({other.slot for other in server.WORKERS.values()})


def child_exit(server: Any, worker: Any) -> None:
    _shares.set(worker.slot, Shares.NOT_SERVING)
    # Its gauges end with it, its counters stay.
    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)


def post_worker_init(worker: Any) -> None:
    for name, reason in worker.app.callable.catalogue.check().items():
        worker.log.error("%s is not ready: %s", name, reason)
