"""The command of the image's HEALTHCHECK: asks the server in this container whether it is ready."""

from __future__ import annotations

import http.client
import sys

from .settings import Settings

# Below the HEALTHCHECK's own timeout, so that `docker inspect` shows the reason.
TIMEOUT_SECONDS = 25


def main() -> int:
    """Return the exit code: 0 if the server is ready, else 1. The answer goes to stdout, for `docker inspect`."""
    connection = http.client.HTTPConnection("127.0.0.1", Settings.from_environ().port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        print(response.read().decode())
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {error}")
        return 1
    return 0 if response.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
