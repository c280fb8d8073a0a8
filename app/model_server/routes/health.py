"""GET /healthz: the process answers. GET /readyz: every model answers its examples correctly."""

from __future__ import annotations

from flask import Blueprint, Response

from ..bodies import json_response
from ..catalogue import Catalogue


def health(catalogue: Catalogue) -> Blueprint:
    """Return the two routes."""
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/healthz")
    def healthz() -> Response:
        return json_response({"status": "alive"})

    @blueprint.get("/readyz")
    def readyz() -> Response:
        reasons = catalogue.check()
        if reasons:
            text = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            return json_response({"error": f"not ready: {text}", "models": reasons}, 503)
        return json_response({"status": "ready", "models": catalogue.names()})

    return blueprint
