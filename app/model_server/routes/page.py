"""GET / and GET /docs: the pages. Their scripts, in frontend/, use the same addresses as any other client."""

from __future__ import annotations

from flask import Blueprint, Response, current_app

# The pages load nothing from elsewhere and run no inline script; blob: is the preview of a chosen picture.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page() -> Blueprint:
    """Return the two routes."""
    blueprint = Blueprint("page", __name__)

    @blueprint.get("/")
    def index() -> Response:
        return _page("index.html")

    # With a slash behind it, the page's relative addresses would be wrong.
    @blueprint.get("/docs", strict_slashes=True)
    def docs() -> Response:
        return _page("docs.html")

    return blueprint


def _page(file: str) -> Response:
    response = current_app.send_static_file(file)
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response
