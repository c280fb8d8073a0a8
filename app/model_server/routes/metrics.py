"""GET /metrics: the server's metrics for Prometheus. nginx shows them only to networks that a setting names."""

from __future__ import annotations

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ..metrics import text


def metrics() -> Blueprint:
    """Return the route."""
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    def answer() -> Response:
        return Response(text(), content_type=CONTENT_TYPE_LATEST)

    return blueprint
