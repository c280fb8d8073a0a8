"""The application: puts routes, error answers and headers together."""

from __future__ import annotations

import logging

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from .bodies import MemoryRequest, json_response
from .calls import Abandoned, Overloaded, TooLate
from .catalogue import Catalogue, NotFound, Unavailable
from .inputs import InputError
from .records import RECORD
from .requests import Requests
from .routes.articles import articles
from .routes.health import health
from .routes.inference import inference
from .routes.metrics import metrics
from .routes.openapi import openapi
from .routes.page import page
from .routes.predict import predict
from .routes.tfserving import AnyCasePath, tfserving
from .settings import Settings

log = logging.getLogger(__name__)


class Application(Flask):
    """The Flask application and the models that it serves."""

    request_class = MemoryRequest
    catalogue: Catalogue


def create_app(settings: Settings | None = None) -> Application:
    """Build the application, by default with the settings from the environment. It loads no engine yet.

    Raises SettingsError, and ManifestError if the compiled models cannot be served.
    """
    settings = settings or Settings.from_environ()
    app = Application(__name__, static_folder="frontend", static_url_path="/static")
    app.config.update(MAX_CONTENT_LENGTH=settings.max_body_bytes, SEND_FILE_MAX_AGE_DEFAULT=0)
    app.url_map.converters["tfserving"] = AnyCasePath
    app.url_map.strict_slashes = False
    app.catalogue = Catalogue(settings.models, settings.max_pixels, settings.queue)
    app.register_blueprint(page())
    app.register_blueprint(predict(app.catalogue))
    app.register_blueprint(articles(app.catalogue))
    app.register_blueprint(tfserving(app.catalogue))
    app.register_blueprint(inference(app.catalogue))
    app.register_blueprint(health(app.catalogue))
    app.register_blueprint(metrics())
    app.register_blueprint(openapi(app.catalogue))
    _answer_errors_in_json(app, settings)
    app.wsgi_app = Requests(app.wsgi_app, settings)  # type: ignore[method-assign]
    return app


def _answer_errors_in_json(app: Flask, settings: Settings) -> None:
    @app.errorhandler(InputError)
    def wrong_input(error: InputError) -> Response:
        return json_response({"error": str(error)}, 400)

    @app.errorhandler(Unavailable)
    def unavailable(error: Unavailable) -> Response:
        return json_response({"error": str(error)}, 503)

    @app.errorhandler(NotFound)
    def not_found(error: NotFound) -> Response:
        return json_response({"error": str(error)}, 404)

    @app.errorhandler(Overloaded)
    def overloaded(error: Overloaded) -> Response:
        response = json_response({"error": str(error)}, 503)
        response.headers["Retry-After"] = str(error.retry_after)
        return response

    @app.errorhandler(TooLate)
    def too_late(error: TooLate) -> Response:
        return json_response({"error": str(error)}, 504)

    @app.errorhandler(Abandoned)
    def abandoned(error: Abandoned) -> Response:
        return json_response({"error": str(error)}, 499)  # nobody reads it, but the request log

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        status = error.code or 500
        texts = {
            404: f"there is nothing at {request.path}; GET /models lists what is served",
            405: f"{request.path} does not take {request.method}",
            413: f"the body exceeds the limit of {settings.max_body_bytes / 2**20:g} MB; send less at once",
        }
        response = json_response({"error": texts.get(status, error.description or error.name)}, status)
        if allowed := getattr(error, "valid_methods", None):
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response

    @app.errorhandler(Exception)
    def internal_error(error: Exception) -> Response:
        request_id = request.environ[RECORD].request_id
        log.exception("request %s failed", request_id)
        text = f"the server failed on this request; its log has the reason under {request_id}"
        return json_response({"error": text}, 500)
