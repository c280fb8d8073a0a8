"""Ask the server in this container whether it is ready; the image's HEALTHCHECK."""

from __future__ import annotations

import http.client
import os
import sys


def main() -> int:
    """Exit status 0 if ready; else 1, with the reasons on stdout, where `docker inspect` shows them."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("MODEL_SERVER_PORT") or 5000), timeout=30)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        print(response.read().decode())
    except OSError as error:
        print(f"no answer: {error}")
        return 1
    return 0 if response.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
