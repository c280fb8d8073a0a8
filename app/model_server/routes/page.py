"""GET /: the page. Its scripts, in frontend/, use GET /models and POST /predict/NAME like any other client."""

from __future__ import annotations

from flask import Blueprint, Response, current_app

# The page loads nothing from elsewhere and runs no inline script; blob: is the preview of a chosen picture.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page() -> Blueprint:
    """Return the route."""
    blueprint = Blueprint("page", __name__)

    @blueprint.get("/")
    def index() -> Response:
        response = current_app.send_static_file("index.html")
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return response

    return blueprint
